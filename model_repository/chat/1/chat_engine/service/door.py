"""The door of an engine: what every thread may call, and what the engine behind it takes in and reports."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from chat_engine.errors import ChatError, DrainingError, EngineFailedError, OverloadedError
from chat_engine.protocol import EngineStats, RequestTimes
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service.stall import stall_seconds

Job = TypeVar("Job")

_MAX_KEPT_TIMES = 10_000


@dataclass(frozen=True)
class Progress:
    """How far a request got; moments are monotonic seconds, None where it did not get there."""

    num_output: int = 0
    num_cached: int = 0
    first_scheduled: float | None = None
    first_token: float | None = None


class Door(Generic[Job]):
    """Base of the engines: who is let in, who waits, who is to be ended, and the numbers.

    An engine adds `submit`, which passes a job to `_enter`: whatever it wants to be given back by `_take`. A thread
    that steps waits in `_wait_for_work`; an event loop has itself called by `_wake`. The engine reports what it does
    in `_numbers` and says of each request, once, that it has `_ended`.

    Args:
        room: requests that may be inside.
        stall_seconds: the engine is stuck when requests are inside but it reports nothing for so long; None: for many
            times as long as it ever took.
        longest: seconds between two of its reports that are known to be normal.
    """

    def __init__(self, room: int, stall_seconds: float | None, longest: float = 0.0) -> None:
        self._room = room
        self._stall_seconds = stall_seconds
        self._longest = longest
        self._changed = threading.Condition()  # guards what follows
        self._inbox: deque[Job] = deque()
        self._open: set[str] = set()
        self._cancelled: set[str] = set()
        self._draining = False
        self._closed = False
        self._failed = False
        self._stats = EngineStats()
        self._progress = time.monotonic()

    # For callers; see `protocol.Engine`.

    def wait_for_room(self, timeout: float) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._has_room or self._refusal() is not None, timeout)

    def cancel(self, request_id: str) -> None:
        """See `protocol.Engine`."""
        with self._changed:
            if request_id in self._open:
                self._cancelled.add(request_id)
                self._tell()

    def stats(self) -> EngineStats:
        """See `protocol.Engine`."""
        with self._changed:
            now = self._stats
            reading = EngineStats(**{**vars(now), "finished": Counter(now.finished)})
            reading.waiting += len(self._inbox)
            now.times = []
            return reading

    def is_ready(self) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            return self._refusal() is None and self._stalled() is None

    def complaint(self) -> str | None:
        """See `protocol.Engine`."""
        with self._changed:
            return "the engine failed" if self._failed else self._stalled()

    def note_pause(self) -> None:
        """See `protocol.Engine`."""
        with self._changed:
            self._progress = time.monotonic()

    def give_up(self) -> None:
        """See `protocol.Engine`."""
        self._fail()

    def drain(self, timeout: float) -> bool:
        """See `protocol.Engine`."""
        with self._changed:
            self._draining = True
            self._tell()
            self._changed.wait_for(lambda: not self._open or self._failed, timeout)
            return not self._open

    def close(self) -> None:
        """Lets nobody in any more; an engine adds that it ends what still runs, and its thread."""
        with self._changed:
            self._closed = True
            self._tell()

    # For the engine behind it.

    def _enter(self, request_id: str, job: Job) -> None:
        """Lets a request in, or raises what `protocol.Engine.submit` does."""
        with self._changed:
            if refusal := self._refusal():
                raise refusal
            if not self._has_room:
                raise OverloadedError(f"{len(self._open)} requests are running, as many as allowed; try again later")
            assert request_id not in self._open, "request ids must be unique"
            if not self._open:  # the time without work is no stall, neither here nor for those who read the numbers
                self._progress, self._stats.last_step = time.monotonic(), time.time()
            self._open.add(request_id)
            self._inbox.append(job)
            self._tell()

    def _wake(self) -> None:
        """Called, with the lock held, when there may be something to take in: for an engine that waits elsewhere."""

    def _wait_for_work(self, idle: bool) -> bool:
        """Waits, when the engine is idle, until a job arrives; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: not idle or self._inbox or self._closed)
            return not self._closed

    @property
    def _is_over(self) -> bool:
        """Whether the engine is to stop: closed, or broken."""
        with self._changed:
            return self._closed or self._failed

    def _take(self) -> tuple[list[Job], set[str]]:
        """What has arrived since the last call, and which requests are to be ended because their callers are gone."""
        with self._changed:
            arrived, self._inbox = list(self._inbox), deque()
            cancelled, self._cancelled = self._cancelled, set()
            return arrived, cancelled

    @contextmanager
    def _numbers(self) -> Iterator[EngineStats]:
        """The counters and gauges, to be changed. They show progress: see `is_ready`."""
        with self._changed:
            yield self._stats
            now = time.monotonic()
            if self._open:
                self._longest = max(self._longest, now - self._progress)
            self._progress = now

    def _ended(self, request: ChatRequest, reason: FinishReason, progress: Progress) -> None:
        """Makes room and counts; to be called before the caller is told, who may have a next request at once."""
        times = _times(request.arrival, progress)
        with self._changed:
            stats = self._stats
            stats.finished[reason] += 1
            if progress.first_scheduled is not None:
                stats.prompt_tokens += len(request.prompt_ids)
                stats.prefix_cache_hit_tokens += progress.num_cached
            if len(stats.times) < _MAX_KEPT_TIMES:
                stats.times.append(times)
            self._open.discard(request.id)
            self._cancelled.discard(request.id)
            self._changed.notify_all()

    def _fail(self) -> None:
        """The engine is broken for good."""
        with self._changed:
            self._failed = True
            self._tell()

    def _stop_error(self) -> ChatError:
        """What those are told who are still inside when the engine stops."""
        with self._changed:
            if self._failed:
                return EngineFailedError("the engine failed while this request was running; it is restarting")
            return DrainingError("the server is shutting down")

    # With the lock held.

    def _stalled(self) -> str | None:
        still = time.monotonic() - self._progress
        limit = self._stall_seconds or stall_seconds(self._longest, self._stats.steps)
        return f"the engine has made no step for {still:.0f} s" if self._open and still > limit else None

    @property
    def _has_room(self) -> bool:
        return len(self._open) < self._room

    def _refusal(self) -> ChatError | None:
        if self._failed:
            return EngineFailedError("the engine failed and is restarting; try again later")
        if self._draining or self._closed:
            return DrainingError("the server is shutting down; try again elsewhere")
        return None

    def _tell(self) -> None:
        self._changed.notify_all()
        self._wake()


def _times(arrival: float, progress: Progress) -> RequestTimes:
    """Of a request that ends now."""
    now, first = time.monotonic(), progress.first_token
    made = progress.num_output
    return RequestTimes(
        queue=None if progress.first_scheduled is None else progress.first_scheduled - arrival,
        first_token=None if first is None else first - arrival,
        per_output_token=(now - first) / (made - 1) if first is not None and made > 1 else None,
        total=now - arrival,
    )
