"""Keeps servers running: one that dies or answers no more is started again, later each time, and not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from local.service import LocalService, ServerError

LOOK_S = 0.5
UNANSWERED_S = 4.0
FIRST_WAIT_S = 0.5
MOST_RESTARTS = 5
_LONGEST_LOOK_S = 2.5
HEALTHY_S = 60.0
"""One that was ready for so long has started well; its failures are counted anew."""


class CrashLoopError(ServerError):
    """A server died again and again."""


class Restarts:
    """How long to wait before each start again. Pure."""

    def __init__(self) -> None:
        self._count = 0

    def next_wait_s(self, ready_for_s: float) -> float | None:
        """After a failure; None when it is one too many. `ready_for_s`: how long it had been ready."""
        self._count = 1 if ready_for_s >= HEALTHY_S else self._count + 1
        return FIRST_WAIT_S * 2.0 ** (self._count - 1) if self._count <= MOST_RESTARTS else None


def keep_running(servers: Sequence[LocalService], say: Callable[[str], None], ending: threading.Event) -> None:
    """Looks at servers that are ready, until it is to end. Raises CrashLoopError when one fails again and again."""
    kept = [_Kept(server, say) for server in servers]
    while not ending.wait(LOOK_S):
        for one in kept:
            one.look(time.monotonic())


class _Kept:
    def __init__(self, server: LocalService, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._restarts = Restarts()
        self._ready_since = self._looked = time.monotonic()
        self._unanswered_s = 0.0
        self._start_at: float | None = None
        self._is_back = True

    def look(self, now: float) -> None:
        elapsed, self._looked = now - self._looked, now
        if self._start_at is not None:
            if now >= self._start_at:
                self._start_at, self._is_back = None, False
                self._server.launch_again()
        elif (code := self._server.poll()) is not None:
            self._failed(f"died (exit code {code})", now)
        elif not self._is_back:
            self._look_whether_it_is_back(now)
        elif self._server.is_live():
            self._unanswered_s = 0.0
        else:
            self._unanswered_s += min(elapsed, _LONGEST_LOOK_S)  # this process may have been paused
            if self._unanswered_s < UNANSWERED_S:
                return
            self._server.kill()
            self._failed(f"has not answered for {UNANSWERED_S:.0f} s and was ended", now)

    def _look_whether_it_is_back(self, now: float) -> None:
        try:
            self._is_back = self._server.is_ready()
        except ServerError as error:
            self._server.kill()
            self._failed(str(error), now)
            return
        if self._is_back:
            self._ready_since, self._unanswered_s = now, 0.0
            self._say(f"{self._server.name} is back, {self._server.seconds:.1f} s after its start")

    def _failed(self, what: str, now: float) -> None:
        ready_for_s = now - self._ready_since if self._is_back else 0.0
        name = self._server.name
        self._say(f"{name} {what}; the end of its log:\n{self._server.log_tail(10)}")
        wait_s = self._restarts.next_wait_s(ready_for_s)
        if wait_s is None:
            raise CrashLoopError(f"{name} failed {MOST_RESTARTS + 1} times in a row; giving up")
        self._say(f"{name} is started again in {wait_s:g} s")
        self._start_at = now + wait_s
