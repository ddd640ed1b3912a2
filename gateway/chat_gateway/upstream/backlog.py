"""How long a new request of a model would wait for its first token, told by those that wait already.

A queue that is bounded by number alone grows until every caller waits for longer than anybody cares to. This one is
bounded by time: who would wait for too long is told so at once, and those who were accepted keep their pace.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

Reason = Literal["token", "left", "refused"]
"""Why a request waits no longer."""

_FIRST_TOKENS: Final = 8
"""Before so many have come, nothing is known of the rate."""
_MEMORY_S: Final = 10.0
"""Of waiting: what is older counts for less than 1/e."""
_UNQUEUED: Final = 4
"""Who finds fewer waiting shows how long a first token takes without a queue."""
_NEWS: Final = 0.2
"""Weight of the newest such time."""


class Backlog:
    """The requests of one model that were sent and have no first token yet.

    The rate of first tokens counts only the time in which somebody waits, since an idle server says nothing about a
    busy one. A few requests at a time do not show what a server can do at once either, so it is not the estimate alone
    that refuses: somebody must have waited for long already, and longer than a first token takes without a queue.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`limit_s` is how long a request may wait for others; 0 for as long as it takes."""
        self._limit_s = limit_s
        self._clock = clock
        self._waiting: dict[Ticket, None] = {}
        self._num_first_tokens = 0
        self._decayed_tokens = self._decayed_s = 0.0
        self._counted_until = clock()
        self._unqueued_s = 0.0

    @property
    def wait_s(self) -> float | None:
        """Estimate for a new request; None as long as nothing is known."""
        self._count_time()
        if self._num_first_tokens < _FIRST_TOKENS or not self._decayed_tokens:
            return None
        return len(self._waiting) * self._decayed_s / self._decayed_tokens

    @property
    def excess_s(self) -> float:
        """By how much a new request would wait too long; 0 if it may come."""
        wait_s, oldest = self.wait_s, next(iter(self._waiting), None)
        if not self._limit_s or wait_s is None or oldest is None:
            return 0.0
        if self._clock() - oldest.since < self._unqueued_s + self._limit_s / 4:
            return 0.0
        return max(0.0, wait_s - self._unqueued_s - self._limit_s)

    def enter(self) -> Ticket:
        """A request is sent."""
        self._count_time()
        ticket = Ticket(self._clock(), self._leave, unqueued=len(self._waiting) < _UNQUEUED)
        self._waiting[ticket] = None
        return ticket

    def _leave(self, ticket: Ticket, reason: Reason) -> None:
        """Who gives up makes room for those behind as a first token does, but shows no pace."""
        self._count_time()
        del self._waiting[ticket]
        self._decayed_tokens += reason != "refused"
        if reason != "token":
            return
        self._num_first_tokens += 1
        if ticket.unqueued:
            took_s = self._clock() - ticket.since
            self._unqueued_s += (took_s - self._unqueued_s) * (_NEWS if self._unqueued_s else 1.0)

    def _count_time(self) -> None:
        now = self._clock()
        passed_s, self._counted_until = now - self._counted_until, now
        if self._waiting:
            kept = math.exp(-passed_s / _MEMORY_S)
            self._decayed_tokens *= kept
            self._decayed_s = self._decayed_s * kept + _MEMORY_S * (1.0 - kept)


class Ticket:
    """One request that waits for its first token."""

    def __init__(self, since: float, leave: Callable[..., None], *, unqueued: bool) -> None:
        self.since = since
        self.unqueued = unqueued
        self._leave: Callable[..., None] | None = leave

    def first_token(self) -> None:
        """It is here. Later ones may be told of, too."""
        self._end("token")

    def close(self, *, left: bool = False) -> None:
        """The request is over, with a token or without; `left`: its caller did not wait for it."""
        self._end("left" if left else "refused")

    def _end(self, reason: Reason) -> None:
        if self._leave is not None:
            leave, self._leave = self._leave, None
            leave(self, reason)


class Backlogs:
    """By model."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._of = defaultdict[str, Backlog](lambda: Backlog(limit_s, clock))

    def excess_s(self, model: str) -> float:
        return self._of[model].excess_s if model in self._of else 0.0

    @contextmanager
    def waiting(self, model: str) -> Iterator[Ticket]:
        """For as long as a request lasts."""
        ticket = self._of[model].enter()
        try:
            yield ticket
        except asyncio.CancelledError:
            ticket.close(left=True)
            raise
        finally:
            ticket.close()
