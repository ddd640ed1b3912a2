"""What `model.py` needs of an engine; a second engine stands behind the same few calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from chat_engine.request import ChatRequest, FinishReason, TokenEvent

# Called on the engine's thread, so it must only hand the event on.
Sink = Callable[[TokenEvent], None]


@dataclass(frozen=True)
class RequestTimes:
    """Seconds in the life of an ended request; None where it did not get that far.

    Attributes:
        queue: from arrival until it first ran.
        first_token: from arrival until its first token.
        per_output_token: mean time between its tokens after the first.
        total: from arrival to end.
    """

    queue: float | None
    first_token: float | None
    per_output_token: float | None
    total: float


@dataclass
class EngineStats:
    """Counters since the start, gauges of now, and the times of requests that ended since the last reading."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    last_step: float = 0.0  # end of the last step, or of the idleness after it; seconds since the epoch, 0 before
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_hit_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    finished: Counter[FinishReason] = field(default_factory=Counter)
    times: list[RequestTimes] = field(default_factory=list)


class Engine(Protocol):
    """Runs chat requests. All calls are safe from any thread."""

    def wait_for_room(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds until `submit` would take a request, or would say why it never will."""
        ...

    def submit(self, request: ChatRequest, sink: Sink) -> None:
        """Takes a request. Its sink gets events, the last of which carries a finish reason, exactly once.

        Raises OverloadedError without room, DrainingError while shutting down, EngineFailedError when broken.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request soon; nothing happens when it has ended already."""
        ...

    def stats(self) -> EngineStats:
        """A reading for the metrics; takes the collected times with it."""
        ...

    def is_ready(self) -> bool:
        """Whether new requests are welcome and running ones make progress."""
        ...

    def complaint(self) -> str | None:
        """Why it does not work: it has failed, or running requests make no progress. None while it does."""
        ...

    def note_pause(self) -> None:
        """Says that the process did not run until now, so that what looks like a stall is none."""
        ...

    def give_up(self) -> None:
        """Says that it is broken for good: it takes nothing any more. Whoever calls tells those who wait."""
        ...

    def drain(self, timeout: float) -> bool:
        """Refuses new requests and waits for the running ones. False when `timeout` seconds were not enough."""
        ...

    def close(self) -> None:
        """Ends what still runs and stops the engine's thread."""
        ...
