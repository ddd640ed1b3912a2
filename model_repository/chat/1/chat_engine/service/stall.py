"""When something takes so long that it will never end: many times the longest that was seen to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST_SECONDS = 5.0
_LEAST_IN_HAND_SECONDS = 60.0  # nothing is known of the first requests, which may be large
_MOST_SECONDS = 120.0
_TIMES = 20
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0


def stall_seconds(longest: float) -> float:
    """How long to wait for the end of something that has taken at most `longest` seconds so far."""
    return min(max(_LEAST_SECONDS, _TIMES * longest), _MOST_SECONDS)


class InHand:
    """What a model works at, and for how long: for models whose requests are short."""

    def __init__(self) -> None:
        self._began: dict[int, float] = {}
        self._count = 0
        self._longest = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around one piece of work; several may run at the same time."""
        with self._lock:
            self._count += 1
            number, began = self._count, time.monotonic()
            self._began[number] = began
        try:
            yield
        finally:
            with self._lock:
                del self._began[number]
                self._longest = max(self._longest, time.monotonic() - began)

    def is_empty(self) -> bool:
        """Whether it works at nothing."""
        return not self._began

    def complaint(self) -> str | None:
        """Why the model does not work, if it does not."""
        with self._lock:
            oldest = time.monotonic() - min(self._began.values(), default=time.monotonic())
            limit = max(_LEAST_IN_HAND_SECONDS, stall_seconds(self._longest))
        return f"it has worked at a request for {oldest:.0f} s" if oldest > limit else None


class StallWatch:
    """A thread that calls `on_stall` once, with a sentence, when `complaint` gives one.

    Where this whole process did not run for a while, as in a container that is paused, that time is no stall:
    `pardon` is called then.
    """

    def __init__(
        self, complaint: Callable[[], str | None], pardon: Callable[[], None], on_stall: Callable[[str], None]
    ) -> None:
        self._complaint, self._pardon, self._on_stall = complaint, pardon, on_stall
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="stall-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        looked = time.monotonic()
        while not self._closing.wait(_POLL_SECONDS):
            late, looked = time.monotonic() - looked - _POLL_SECONDS, time.monotonic()
            if late > _PAUSE_SECONDS:
                self._pardon()
            elif words := self._complaint():
                self._on_stall(words)
                return
