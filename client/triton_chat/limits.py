"""How long to wait: for the next event of a stream, and for several requests together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from triton_chat.errors import StreamTimeoutError


class WaitLimit:
    """How long one stream may keep its reader waiting: for the first token, and from event to event.

    It is counted only while the reader waits: one that is itself slow does not use it up. An event without a token says
    that the request lives; the first token must come within its own limit all the same.
    """

    def __init__(self, first_s: float, idle_s: float, cancel: Callable[[], object]) -> None:
        self._first_s = max(first_s, idle_s)
        self._idle_s = idle_s
        self._cancel = cancel
        self._heard = False
        self._has_token = False
        self._left_s = self._first_s
        self._since = 0.0
        self.deadline = math.inf
        self.expired = False

    def begin(self) -> float:
        """The reader waits from now on; returns the deadline on the `time.monotonic` clock."""
        self._since = time.monotonic()
        self.deadline = self._since + self._seconds
        return self.deadline

    def end(self, *, is_token: bool = True) -> None:
        """Something arrived; `is_token`: more than a sign of life."""
        if self.deadline != math.inf:
            self._left_s -= time.monotonic() - self._since
        self.stop()
        self._heard = True
        self._has_token |= is_token

    def stop(self) -> None:
        """Nobody waits any more."""
        self.deadline = math.inf

    def expire(self) -> None:
        """End the stream."""
        self.expired = True
        self._cancel()

    def error(self) -> StreamTimeoutError:
        """What to tell the reader of an expired stream."""
        if self._has_token:
            return StreamTimeoutError(f"no new token for {self._idle_s:g} seconds")
        if self._heard and self._left_s > self._idle_s:
            return StreamTimeoutError(f"no sign of life for {self._idle_s:g} seconds")
        return StreamTimeoutError(f"no first token within {self._first_s:g} seconds")

    @property
    def _seconds(self) -> float:
        if self._has_token:
            return self._idle_s
        return min(self._left_s, self._idle_s) if self._heard else self._left_s


class Deadline:
    """What is left of a time limit that several requests share."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; 0 when there are none left."""
        return max(0.0, self._at - time.monotonic())
