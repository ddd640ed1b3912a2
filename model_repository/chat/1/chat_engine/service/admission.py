"""Requests in hand: Triton has handed them over, and the engine has no room for them yet.

Triton hands over a group, priority 1 first, and what it has handed over it can neither refuse nor cancel any more. So
whoever stands here is watched, counted and refused here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic as now
from typing import Any

from chat_engine.errors import ChatError, EngineFailedError, OverloadedError, RequestCancelledError
from chat_engine.protocol import Engine, EngineStats
from chat_engine.request import ChatRequest, FinishReason, TokenEvent
from chat_engine.service.delivery import Mailbox

log = logging.getLogger(__name__)

_ROOM_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class QueueLimit:
    """How long a request may wait, as the queue policy in `config.pbtxt` says. 0: for ever."""

    seconds: float = 0.0
    may_be_shortened: bool = False

    @classmethod
    def of(cls, model_config: Mapping[str, Any]) -> QueueLimit:
        """That of the model's configuration, as Triton gives it."""
        policy = model_config.get("dynamic_batching", {}).get("default_queue_policy", {})
        microseconds = int(policy.get("default_timeout_microseconds", 0))
        return cls(microseconds / 1e6, bool(policy.get("allow_timeout_override", False)))

    def of_request(self, microseconds: int) -> float:
        """What counts for a request that brings a limit of its own, or 0: it may only shorten one, as in Triton."""
        own = microseconds / 1e6
        return min(self.seconds, own) if own and self.seconds and self.may_be_shortened else self.seconds


@dataclass
class _InHand:
    request: ChatRequest
    mailbox: Mailbox
    may_wait: float
    since: float
    cancelled: bool = False

    def refusal(self) -> ChatError | None:
        """Why it need not wait any longer."""
        if self.cancelled:
            return RequestCancelledError("the request was cancelled while it waited")
        if self.may_wait and now() - self.since >= self.may_wait:
            return OverloadedError(f"no room within {self.may_wait:g} seconds, as long as it may wait; try again later")
        return None


class Admission:
    """Lets requests into the engine in the order in which they come, each once there is room.

    `take` and `clear` are for one thread, that of `execute`; the others may come from any.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._in_hand: list[_InHand] = []

    def take(self, request: ChatRequest, mailbox: Mailbox, may_wait: float) -> None:
        """Takes a request in hand. It goes in at once where there is room; `may_wait` seconds later it is refused."""
        with self._lock:
            self._in_hand.append(_InHand(request, mailbox, may_wait, now()))
        self._let_in(0.0)

    def clear(self) -> None:
        """Waits until nobody is in hand any more."""
        while self._in_hand:
            self._let_in(_ROOM_POLL_SECONDS)

    def cancel(self, request_id: str) -> None:
        """Ends a request soon, in hand or in the engine."""
        with self._lock:
            for entry in self._in_hand:
                if entry.request.id == request_id:
                    entry.cancelled = True
        self._engine.cancel(request_id)

    def stats(self) -> EngineStats:
        """Those of the engine; who is in hand waits, too."""
        reading = self._engine.stats()
        reading.waiting += len(self._in_hand)
        return reading

    def _let_in(self, timeout: float) -> None:
        """Waits at most so long for room."""
        self._refuse_those_who_need_not_wait()
        while self._in_hand and self._engine.wait_for_room(timeout):
            first = self._in_hand[0]
            try:
                self._engine.submit(first.request, first.mailbox.put)
            except ChatError as error:
                _refuse(first, error)
            except Exception:  # the others must not suffer
                log.exception("a request could not be admitted")
                _refuse(first, EngineFailedError("the request could not be admitted: internal error"))
            with self._lock:
                self._in_hand.remove(first)
            if first.cancelled:  # meanwhile, when the engine did not know it yet
                self._engine.cancel(first.request.id)

    def _refuse_those_who_need_not_wait(self) -> None:
        for entry, refusal in [(entry, entry.refusal()) for entry in self._in_hand]:
            if refusal is not None:
                with self._lock:
                    self._in_hand.remove(entry)
                _refuse(entry, refusal)


def _refuse(entry: _InHand, error: ChatError) -> None:
    reason = FinishReason.CANCELLED if isinstance(error, RequestCancelledError) else FinishReason.ERROR
    entry.mailbox.put(TokenEvent("", len(entry.request.prompt_ids), 0, 0, finish_reason=reason, error=error))
