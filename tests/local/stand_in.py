"""Servers of a few lines in place of the real ones: they start in a tenth of a second."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from local import ports, readiness
from local.options import ServiceOptions
from local.preflight import Problem
from local.process import KeptProcess
from local.service import LocalService

BEHAVIOUR = """
import http.server, pathlib, signal, sys, time

STARTS = pathlib.Path(ENDED).with_name(NAME + ".started")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response_only(200)
        self.end_headers()

def end(number, frame):
    with open(ENDED, "a") as ended:
        print(NAME, file=ended)
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if STUBBORN else end)
print(NAME, "speaks", flush=True)
if CRASHES and STARTS.exists():
    sys.exit(9)
STARTS.touch()
time.sleep(DELAY_S)
if EXIT is not None:
    sys.exit(EXIT)
http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


class StandIn(LocalService):
    """Notes its name in `ended.txt` of `folder` when SIGTERM ends it. One that `crashes` starts only once."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        delay_s: float = 0.0,
        exit_code: int | None = None,
        stubborn: bool = False,
        crashes: bool = False,
        ready_timeout_s: float = 10.0,
        exit_timeout_s: int = 5,
        after: LocalService | None = None,
    ) -> None:
        super().__init__(after)
        self.name = name  # type: ignore[misc] # one class stands for all
        self.options = ServiceOptions(
            log_path=folder / f"{name}.log", ready_timeout_s=ready_timeout_s, exit_timeout_s=exit_timeout_s
        )
        (self.port,) = ports.choose("127.0.0.1", (0,))
        self.asked = 0
        values = {
            "NAME": name,
            "PORT": self.port,
            "DELAY_S": delay_s,
            "EXIT": exit_code,
            "STUBBORN": stubborn,
            "CRASHES": crashes,
            "ENDED": str(folder / "ended.txt"),
        }
        self._script = "\n".join(f"{key} = {value!r}" for key, value in values.items()) + BEHAVIOUR

    def problems(self) -> list[Problem]:
        return []

    def is_live(self) -> bool:
        return self._answers()

    def _spawn(self) -> KeptProcess:
        command = [sys.executable, "-IS", "-c", self._script]
        return KeptProcess(command, os.environ, self.options.log_path, self.options.exit_timeout_s)

    def _answers(self) -> bool:
        self.asked += 1
        return readiness.answers(f"http://127.0.0.1:{self.port}/")


def ended(folder: Path) -> list[str]:
    """The names of those that SIGTERM has ended, in that order."""
    path = folder / "ended.txt"
    return path.read_text().split() if path.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
