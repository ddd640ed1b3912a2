"""What ends a stream whose `WaitLimit` has passed: for threads a watchdog, for asyncio a timer of the event loop."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Protocol

from triton_chat.limits import WaitLimit


class Timer(Protocol):
    """Of one stream."""

    def begin(self) -> None:
        """The reader waits from now on."""

    def stop(self) -> None:
        """The stream is over."""


class Watchdog:
    """One thread that ends the streams of a client whose limit has passed. It runs only while there are streams."""

    def __init__(self) -> None:
        self._limits: set[WaitLimit] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._next_wake = math.inf

    def begin(self, limit: WaitLimit) -> None:
        """Start counting. The thread is woken only if it would wake too late by itself: about once per idle limit."""
        with self._changed:
            if limit.begin() < self._next_wake:
                self._start()
                self._changed.notify()

    def watch(self, limit: WaitLimit) -> None:
        """A new stream; nothing counts before `begin`."""
        with self._changed:
            self._limits.add(limit)

    def forget(self, limit: WaitLimit) -> None:
        """The stream is over."""
        with self._changed:
            self._limits.discard(limit)
            self._changed.notify()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="triton-chat-watchdog", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._next_wake = min((limit.deadline for limit in self._limits), default=math.inf)
                if not self._limits:
                    self._thread = None
                    self._next_wake = math.inf
                    return
                delay = self._next_wake - time.monotonic()
                if delay > 0:
                    self._changed.wait(None if delay == math.inf else delay)
                    continue
                late = {limit for limit in self._limits if limit.deadline <= time.monotonic()}
                self._limits -= late
            for limit in late:
                limit.expire()


class WatchedTimer:
    """The timer of one stream that a watchdog watches."""

    def __init__(self, watchdog: Watchdog, limit: WaitLimit) -> None:
        self._watchdog = watchdog
        self._limit = limit
        watchdog.watch(limit)

    def begin(self) -> None:
        """The reader waits from now on."""
        self._watchdog.begin(self._limit)

    def stop(self) -> None:
        """The stream is over."""
        self._watchdog.forget(self._limit)


class LoopTimer:
    """The timer of one stream on an event loop. Knows the limit, not the stream, so that a dropped stream can go."""

    def __init__(self, limit: WaitLimit) -> None:
        self._limit = limit
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf

    def begin(self) -> None:
        """Start counting. The loop's timer is set anew only if it would fire too late by itself."""
        deadline = self._limit.begin()
        if deadline < self._due:
            self._schedule(deadline)

    def stop(self) -> None:
        """The stream is over."""
        self._limit.stop()
        self._due = math.inf
        if self._handle is not None:
            self._handle.cancel()

    def _schedule(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._due = deadline
        self._handle = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._check)

    def _check(self) -> None:
        self._due = math.inf
        deadline = self._limit.deadline
        if deadline <= time.monotonic():
            self._limit.expire()
        elif deadline != math.inf:
            self._schedule(deadline)
