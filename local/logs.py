"""A folder of logs for each run, so that two that run side by side do not write into each other's; old ones go."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT_RUNS = 10
LATEST = "latest"
"""A link to the run that began last."""
_RUN = re.compile(r"\d{8}-\d{6}-\d+")


def run_name() -> str:
    """Of this process's run; names sort by their beginning."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


@contextmanager
def kept(run: Path) -> Iterator[None]:
    """Makes the folder of a run, and room for it beside the others; it is not cleared away inside the block."""
    run.mkdir(parents=True, exist_ok=True)
    lock = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        _point(run.parent / LATEST, run.name)
        _clear(run.parent)
        yield
    finally:
        os.close(lock)


def _point(link: Path, name: str) -> None:
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.replace(link)


def _clear(logs: Path) -> None:
    """Leaves the newest, and whatever still runs."""
    runs = sorted(folder for folder in logs.iterdir() if _RUN.fullmatch(folder.name))
    for run in runs[:-KEPT_RUNS]:
        if not _in_use(run):
            shutil.rmtree(run, ignore_errors=True)


def _in_use(run: Path) -> bool:
    try:
        lock = os.open(run, os.O_RDONLY)
    except FileNotFoundError:  # another launcher clears, too
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
