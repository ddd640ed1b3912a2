"""vLLM's processes: whether one is gone, and the end of all.

Its cores do not notice the end of the process that has started them, and its workers may outlive their core. So this
file is also a program, the guard, which waits for the end of its parent and then ends what that has left behind.

It needs nothing but Python and Linux' `/proc`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

_SHARED_MEMORY = "/dev/shm/"  # noqa: S108 - where POSIX shared memory lives
_OF_VLLM = (b"VLLM::", b"multiprocessing.spawn")  # its names for them, and how they begin
_TRACKER = b"multiprocessing.resource_tracker"  # Python's own; it ends last, and removes what others have left
_UNTRACKED = "vllm_dist_"  # shared memory that no tracker knows of
_LOOK_SECONDS = 1.0
_ENDS_SECONDS = 5.0
_INPUT, _OUTPUT = 0, 1


@dataclass(frozen=True)
class Process:
    """By its number, and when it was started: numbers are used again."""

    pid: int
    started: str

    @property
    def lives(self) -> bool:
        """Whether there is still such a process, that is no zombie."""
        found = _stat(self.pid)
        return found is not None and found.started == self.started and found.state not in ("Z", "X")

    def is_any_of(self, names: Iterable[bytes]) -> bool:
        """Whether one of these stands in its command line."""
        line = _read(f"/proc/{self.pid}/cmdline")
        return any(name in line for name in names)

    def kill(self) -> None:
        """SIGKILL."""
        if self.lives:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def shared_memory(self) -> set[Path]:
        """Files of the shared memory that it uses."""
        lines = _read(f"/proc/{self.pid}/maps").decode(errors="replace").splitlines()
        names = (line.partition(_SHARED_MEMORY)[2] for line in lines)
        return {Path(_SHARED_MEMORY + name) for name in names if name and not name.endswith(" (deleted)")}


class Processes:
    """Those of one engine: made before there are any, told by `note` that all are there."""

    def __init__(self) -> None:
        self._others = set(_of_vllm(os.getpid()))
        self._noted: set[Process] = set()
        self._guard = _Guard()

    def note(self) -> None:
        """All are there from now on.

        The shared memory of vLLM's communication between CPUs loses its name, which nobody needs any more: else it
        would stay when a worker is killed.
        """
        self._noted = set(_of_vllm(os.getpid())) - self._others
        self._guard.note()
        for file in {file for process in self._noted for file in process.shared_memory()}:
            if file.name.startswith(_UNTRACKED):
                file.unlink(missing_ok=True)

    def one_is_gone(self) -> bool:
        """Whether any of those noted has ended."""
        return not all(process.lives for process in self._noted)

    def end(self) -> None:
        """SIGKILL to all that still live."""
        for process in self._noted | set(_of_vllm(os.getpid())) - self._others:
            process.kill()

    def close(self) -> None:
        """Ends what still lives, and the guard."""
        self.end()
        self._guard.close()


def descendants(ancestor: int) -> list[Process]:
    """All processes that a process has started, and those that these have."""
    numbers = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    stats = [found for number in numbers if (found := _stat(number))]
    family = {ancestor}
    while more := {found.pid for found in stats if found.parent in family} - family:
        family |= more
    return [Process(found.pid, found.started) for found in stats if found.pid in family and found.pid != ancestor]


def _of_vllm(ancestor: int) -> list[Process]:
    return [process for process in descendants(ancestor) if process.is_any_of(_OF_VLLM)]


@dataclass(frozen=True)
class _Stat:
    pid: int
    state: str
    parent: int
    started: str


def _stat(pid: int) -> _Stat | None:
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()
    return _Stat(pid, fields[0], int(fields[1]), fields[19]) if fields else None


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it is gone
        return b""


# The guard.


class _Guard:
    """The process, in a session of its own: what ends this one's group leaves it to its work."""

    def __init__(self) -> None:
        command = [sys.executable, "-IS", __file__, str(os.getpid())]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0, start_new_session=True)  # noqa: S603

    def note(self) -> None:
        """Has it look which processes there are, and waits until it has."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdout.readline()

    def close(self) -> None:
        """Ends it before its input ends: there is nothing to do for it."""
        self._process.kill()
        self._process.communicate()


def guard(parent: int) -> None:
    """Returns once the parent, whose end is that of the input, and all that it had started are gone."""
    family: set[Process] = set()
    while not (told := select([_INPUT], [], [], _LOOK_SECONDS)[0]) or os.read(_INPUT, 1):
        family = {process for process in descendants(parent) if not process.is_any_of([os.fsencode(__file__)])}
        if told:
            os.write(_OUTPUT, b"\n")
    files = {file for process in family for file in process.shared_memory()}
    for process in family:
        if not process.is_any_of([_TRACKER]):
            process.kill()
    deadline = time.monotonic() + _ENDS_SECONDS
    while any(process.lives for process in family) and time.monotonic() < deadline:
        time.sleep(0.02)
    for file in files:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    guard(int(sys.argv[1]))
