"""Runs `triton-chat` as a process of its own, with pipes or on a pseudo terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"
COMMAND = [sys.executable, "-m", "triton_chat"]
WAIT_S = 20.0


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return kept | {"PYTHONPATH": str(CLIENT), "TRITON_CHAT_URL": url, "HOME": "/nonexistent", "TERM": "dumb"} | more


def start(url: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(url, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(url: str, *arguments: str, stdin: bytes | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(url, **env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )


class Terminal:
    """The command on a pseudo terminal, whose control characters act as those of a keyboard do."""

    CTRL_C = b"\x03"
    CTRL_D = b"\x04"

    def __init__(self, url: str, *arguments: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_TERMINAL, *COMMAND, *arguments],
            env=environment(url, **env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.output = b""
        self._seen = 0

    def expect(self, text: str) -> None:
        """Wait until the text appears after what was expected before."""
        wanted, deadline = text.encode(), time.monotonic() + WAIT_S
        while (at := self.output.find(wanted, self._seen)) < 0:
            readable, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{text!r} has not appeared in {self.output.decode(errors='replace')!r}"
            try:
                self.output += os.read(self._master, 65536)
            except OSError as error:
                raise AssertionError(f"ended without {text!r}: {self.output.decode(errors='replace')!r}") from error
        self._seen = at + len(wanted)

    def expect_prompt(self) -> None:
        """Wait for the prompt and until the process sleeps in it: readline misses a Ctrl-C between the two."""
        self.expect("> ")
        deadline, asleep = time.monotonic() + WAIT_S, 0
        while asleep < 5:
            assert time.monotonic() < deadline, "never waits for a line"
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)

    def type(self, keys: str | bytes) -> None:
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def wait(self) -> int:
        return self._process.wait(WAIT_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)


_WITH_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Makes the pseudo terminal the controlling one, without which Ctrl-C is only a character."""
