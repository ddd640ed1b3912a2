"""How long to wait: for the next event of a stream, and for several requests together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from triton_chat.errors import StreamTimeoutError


class WaitLimit:
    """How long one stream may keep its reader waiting: first for the first event, then between events.

    It is counted only while the reader waits: one that is itself slow does not use it up.
    """

    def __init__(self, first_s: float, idle_s: float, cancel: Callable[[], object]) -> None:
        self._first_s = max(first_s, idle_s)
        self._idle_s = idle_s
        self._cancel = cancel
        self._started = False
        self.deadline = math.inf
        self.expired = False

    def begin(self) -> float:
        """The reader waits from now on; returns the deadline on the `time.monotonic` clock."""
        self.deadline = time.monotonic() + (self._idle_s if self._started else self._first_s)
        return self.deadline

    def end(self) -> None:
        """Something arrived."""
        self.stop()
        self._started = True

    def stop(self) -> None:
        """Nobody waits any more."""
        self.deadline = math.inf

    def expire(self) -> None:
        """End the stream."""
        self.expired = True
        self._cancel()

    def error(self) -> StreamTimeoutError:
        """What to tell the reader of an expired stream."""
        if self._started:
            return StreamTimeoutError(f"no new token for {self._idle_s:g} seconds")
        return StreamTimeoutError(f"no first token within {self._first_s:g} seconds")


class Deadline:
    """What is left of a time limit that several requests share."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; 0 when there are none left."""
        return max(0.0, self._at - time.monotonic())
