"""The process of a contender: it opens the way in and runs loads, one at a time, whenever it is told to.

Each has one of its own, so that nobody pays for the threads and the memory of another.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.doors import Door
from benchmarks.loads import Load, Seen
from benchmarks.peers import last_line

LOAD_LIMIT_S = 900.0
_START_LIMIT_S = 600.0


class EndedError(RuntimeError):
    """A contender's process is gone, and what it said last."""


class Worker:
    """The other end of such a process."""

    def __init__(self, pipe: Connection, log: Path) -> None:
        self._pipe = pipe
        self._log = log

    def run(self, load: Load, number: int) -> Seen:
        """Raises EndedError."""
        seen = self.told((load, number), LOAD_LIMIT_S + 10)
        assert isinstance(seen, Seen)
        return seen

    def told(self, task: object, limit_s: float) -> object:
        """Its answer to a task. Raises EndedError where there is none in time."""
        try:
            if task is not None:
                self._pipe.send(task)
            if self._pipe.poll(limit_s):
                return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise EndedError(f"{last_line(self._log)} (see {self._log})") from None
        raise EndedError(f"no answer within {limit_s:.0f} s (see {self._log})")


@contextmanager
def worker(door: Door, log: Path) -> Iterator[Worker]:
    """Ready inside the block. Raises EndedError where it does not get there."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(door, log, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        found = Worker(ours, log)
        found.told(None, _START_LIMIT_S)
        yield found
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _work(door: Door, log: Path, pipe: Connection) -> None:
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    asyncio.run(_serve(door, pipe))


async def _serve(door: Door, pipe: Connection) -> None:
    async with door.open() as ask:
        pipe.send("ready")
        while task := await asyncio.to_thread(_next, pipe):
            load, number = task
            async with asyncio.timeout(LOAD_LIMIT_S):
                seen = await load.run(ask, number)
            pipe.send(seen)


def _next(pipe: Connection) -> tuple[Load, int] | None:
    """None when the other end is closed."""
    try:
        task: tuple[Load, int] = pipe.recv()
    except EOFError:
        return None
    return task
