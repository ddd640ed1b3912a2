"""Plain lines about a long download: how far it is, every few seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("fetch")

INTERVAL_S = 5.0


@contextmanager
def reported(total: int, done: Callable[[], int], interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Logs inside the block. `done` tells the bytes that are there; all but the first reading count for the speed."""
    closing = threading.Event()
    began, at_start = time.monotonic(), done()

    def loop() -> None:
        while not closing.wait(interval_s):
            now = done()
            speed = (now - at_start) / (time.monotonic() - began)
            log.info("%s of %s (%d%%), %s/s", size(now), size(total), _percent(now, total), size(int(max(speed, 0))))

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        thread.join()


def size(count: int) -> str:
    """In decimal units: 13.8 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _percent(done: int, total: int) -> int:
    return min(100, done * 100 // total) if total else 100
