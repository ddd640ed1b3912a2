"""The outermost layer: gives every request its id, and tells the log and the metrics how it ended."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable

from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat_gateway.http.auth import OPEN_PATHS
from chat_gateway.http.exchange import Exchange
from chat_gateway.http.metrics import Metrics, route_of

_USABLE_ID = re.compile(r"[!-Z^-~]{1,128}")
"""Printable ASCII without brackets, because Triton's messages begin with `[request id: ...]`."""
_SHOWN = 256
"""Characters of a caller's text in a log line."""

_log = logging.getLogger(__name__)


class Access:
    """Costs a streamed chunk one plain function call."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(request_id_of(headers))
        exchange.attach(scope)
        id_header = (b"x-request-id", exchange.request_id.encode())

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received(message)
            return message

        def counted_send(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.body":
                exchange.sends(message)
            elif message["type"] == "http.response.start":
                exchange.starts(message)
                message["headers"] = [*message["headers"], id_header]
                if exchange.streams:
                    self._metrics.stream_opened(scope)
            return send(message)

        self._metrics.request_began()
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            self._metrics.request_ended(scope, exchange)
            _write(scope, headers, exchange)


def request_id_of(headers: Headers) -> str:
    """The caller's `X-Request-Id` if it can be used, else a fresh one."""
    given = headers.get("x-request-id", "")
    return given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _write(scope: Scope, headers: Headers, exchange: Exchange) -> None:
    """One line. It has no query string, no header that could be a secret, and nothing of a body."""
    quiet = exchange.outcome < 400 and route_of(scope) in {*OPEN_PATHS, "/metrics"}
    level = logging.DEBUG if quiet else logging.INFO
    if not _log.isEnabledFor(level):
        return
    client = scope.get("client")
    fields = {
        "request_id": exchange.request_id,
        "client": client[0] if client else None,
        "method": scope["method"][:_SHOWN],
        "path": scope["path"][:_SHOWN],
        "status": exchange.outcome,
        "duration_s": round(exchange.duration_s, 6),
        "first_chunk_s": None if exchange.first_chunk_s is None else round(exchange.first_chunk_s, 6),
        "request_bytes": exchange.request_bytes,
        "response_bytes": exchange.response_bytes,
        "user_agent": headers.get("user-agent", "")[:_SHOWN] or None,
        "trace_id": _trace_id(),
    }
    _log.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})


def _trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
