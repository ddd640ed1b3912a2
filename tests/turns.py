"""Tests in several processes: one that measures time has the machine to itself, while the other processes wait."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "alone"


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Waits in line with the processes that use the same folder: for nobody but one that is alone, or for all."""
    with (folder / "next").open("w") as line, (folder / "running").open("w") as running:
        fcntl.flock(line, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(line, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)  # a child that has inherited the file must not keep it
