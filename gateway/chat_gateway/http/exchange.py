"""One request and its response, as far as the log, the metrics and the trace need to know."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Scope

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a caller that left before the answer was complete. It is never sent."""

_KEY = "exchange"


@dataclass(slots=True)
class Exchange:
    """Filled while the messages pass. Times are on the clock of `time.perf_counter`."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    first_chunk: float | None = None
    status: int | None = None
    """As sent; None before the response begins."""
    streams: bool = False
    complete: bool = False
    """The last chunk of the response was handed to the server."""
    left: bool = False
    """The caller was seen to leave before that."""
    request_bytes: int = 0
    response_bytes: int = 0

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        exchange: Exchange = scope["state"][_KEY]
        return exchange

    def attach(self, scope: Scope) -> None:
        """For `of`, and for what reads `request.state`."""
        state: dict[str, Any] = scope.setdefault("state", {})
        state[_KEY] = self
        state["request_id"] = self.request_id

    @property
    def outcome(self) -> int:
        """The status that tells how it ended, which may be another than the one that was sent."""
        if self.left:
            return CLIENT_CLOSED_REQUEST
        return self.status if self.status is not None and self.complete else 500

    @property
    def duration_s(self) -> float:
        return time.perf_counter() - self.began

    @property
    def first_chunk_s(self) -> float | None:
        """How long a stream made its caller wait; None for what is no stream."""
        return self.first_chunk - self.began if self.streams and self.first_chunk is not None else None

    def received(self, message: Message) -> None:
        if message["type"] == "http.request":
            self.request_bytes += len(message.get("body", b""))
        elif not self.complete:
            self.left = True

    def starts(self, message: Message) -> None:
        self.status = message["status"]
        self.streams = any(
            name.lower() == b"content-type" and value.startswith(b"text/event-stream")
            for name, value in message["headers"]
        )

    def sends(self, message: Message) -> None:
        body = message.get("body", b"")
        self.response_bytes += len(body)
        if self.first_chunk is None and body:
            self.first_chunk = time.perf_counter()
        self.complete = not message.get("more_body", False)
