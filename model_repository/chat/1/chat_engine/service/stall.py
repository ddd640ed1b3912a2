"""When something takes so long that it will never end: many times the longest that was seen to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST_SECONDS = 5.0
_LEAST_AT_FIRST_SECONDS = 20.0  # the first steps may load kernels, or read weights that were paged out
_KNOWN_STEPS = 100
_MOST_SECONDS = 120.0
_IN_HAND_SECONDS = 900.0  # for work whose size nothing bounds: a batch of long texts takes minutes on a CPU
_TIMES = 20
_POLL_SECONDS = 0.5
_PAUSE_SECONDS = 2.0


def stall_seconds(longest: float, steps: int) -> float:
    """How long to wait for the end of a step, of which there were so many, the longest of so many seconds."""
    least = _LEAST_SECONDS if steps >= _KNOWN_STEPS else _LEAST_AT_FIRST_SECONDS
    return min(max(least, _TIMES * longest), _MOST_SECONDS)


class InHand:
    """What a model works at, and for how long: for models without an engine."""

    def __init__(self) -> None:
        self._began: dict[int, float] = {}
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around one piece of work; several may run at the same time."""
        with self._lock:
            self._count += 1
            number = self._count
            self._began[number] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._began[number]

    def is_empty(self) -> bool:
        """Whether it works at nothing."""
        return not self._began

    def complaint(self) -> str | None:
        """Why the model does not work, if it does not."""
        with self._lock:
            oldest = time.monotonic() - min(self._began.values(), default=time.monotonic())
        return f"it has worked at a request for {oldest:.0f} s" if oldest > _IN_HAND_SECONDS else None


class StallWatch:
    """A thread that calls `on_stall` once, with a sentence, when `complaint` gives one.

    Where this whole process did not run for a while, as in a container that is paused, that time is no stall:
    `note_pause` is called then.
    """

    def __init__(
        self, complaint: Callable[[], str | None], note_pause: Callable[[], None], on_stall: Callable[[str], None]
    ) -> None:
        self._complaint, self._note_pause, self._on_stall = complaint, note_pause, on_stall
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
                self._note_pause()
            elif words := self._complaint():
                self._on_stall(words)
                return
