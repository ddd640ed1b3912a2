"""Stands between the runner and one of its servers, and cleans up behind it, however either of them ends.

Usage: keeper.py [--shared-memory PREFIX] LOG TIMEOUT_S COMMAND... It prints the server's process id. The end of its
standard input is the order to stop: it comes when the runner closes it, and also when the runner is killed. A server
that does not end on SIGTERM within the timeout is killed, with all processes that it has started and the shared memory
that they leave behind.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def keep(log_path: Path, shm_prefix: str | None, timeout_s: float, command: list[str]) -> int:
    """Runs `command` to its end. Returns its exit code, 128 + n for signal n as a shell would."""
    with log_path.open("ab") as log:
        # A session of its own: Ctrl-C in the terminal reaches only the runner.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_keeper,  # noqa: PLW1509 - no other thread runs yet
        )
    print(server.pid, flush=True)
    threading.Thread(target=_stop_at_end_of_input, args=(server, timeout_s), daemon=True).start()
    code = server.wait()
    end_session(server.pid)
    if shm_prefix:
        remove_shared_memory(shm_prefix)
    return code if code >= 0 else 128 - code


def end_session(session: int) -> None:
    """Kills what a server that is gone has left: its children may be in groups of their own."""
    while left := [pid for pid in _processes() if _session(pid) == session]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def remove_shared_memory(prefix: str) -> None:
    """Removes the regions that a killed server could not."""
    for region in SHARED_MEMORY.glob(prefix + "*"):
        if region.is_dir():
            shutil.rmtree(region, ignore_errors=True)
        else:
            region.unlink(missing_ok=True)


def _stop_at_end_of_input(server: subprocess.Popen[bytes], timeout_s: float) -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read(), whose lock a daemon thread must not hold at exit
    server.terminate()
    try:
        server.wait(timeout_s)
    except subprocess.TimeoutExpired:
        server.kill()


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _session(pid: int) -> int | None:
    """None for a zombie: it is gone, and only waits to be seen."""
    try:
        state, _parent, _group, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return int(session) if state != "Z" else None


def _die_with_keeper() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a server that ends when standard input does.")
    parser.add_argument("--shared-memory", metavar="PREFIX", help="of the regions to remove when the server is gone")
    parser.add_argument("log", type=Path)
    parser.add_argument("timeout_s", type=float)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    return keep(arguments.log, arguments.shared_memory, arguments.timeout_s, arguments.command)


if __name__ == "__main__":
    sys.exit(main())
