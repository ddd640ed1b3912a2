"""uvicorn's HTTP protocol with limits that it lacks, and for clients that do what it does not expect."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from chat_gateway.errors import ApiError
from chat_gateway.http.connections import Connections, Stage, Transport

if TYPE_CHECKING:
    import asyncio
    from array import array

    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

MAX_HEAD_BYTES = 64 * 1024
"""For the request line and the headers, or the trailers, of one request; what h11 allows too."""

_WITHOUT_CHUNKS: Final = ("0.9", "1.0")
"""Versions of HTTP whose answers have no transfer coding."""


class Protocol(HttpToolsProtocol):
    """Ignores the offer of another protocol, answers HTTP/1.0 in its own terms, and bounds the head of a request.

    It tells `Connections` what it waits for. What does not reach the app is refused in the API's own form.

    Sources: RFC 9110, 7.8 (a server may ignore `Upgrade`); RFC 9112, 6.1 and 9.3 (HTTP/1.0).
    """

    parser: _Parser
    stage: Stage = "head"
    since = 0.0
    address = ""
    _head_bytes = 0

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._others = connections
        self.parser = _Parser(self)

    @property
    def serving(self) -> bool:
        cycle = self._last_cycle
        return cycle is not None and not cycle.response_complete

    @property
    def request_id(self) -> str | None:
        cycle = self._last_cycle
        return None if cycle is None else cycle.scope.get("state", {}).get("request_id")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(cast("asyncio.Transport", Transport(transport)))
        self.since = time.monotonic()
        self.address = self.client[0] if self.client else ""
        self._others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._others.remove(self)

    def data_received(self, data: bytes) -> None:
        """llhttp collects headers for as long as they come, from anybody who can connect."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            sentence = f"the head of the request is too large; at most {MAX_HEAD_BYTES} bytes are allowed"
            self._refuse(ApiError(431, sentence, code="request_too_large"))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's only sentence, in a plain text
        self._refuse(ApiError(400, "the request is not valid HTTP", code="invalid_http"))

    def give_up(self, error: ApiError | None = None) -> None:
        """See `Connection`. A head of which nothing has come is not worth an answer: nobody waits for one."""
        if error is not None and self._head_bytes and self._may_answer:
            self._write(error)
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.stage, self.since = "head", time.monotonic()

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        self.stage = "body"
        if self.parser.offers_upgrade:
            return
        super().on_headers_complete()
        if self.scope["http_version"] in _WITHOUT_CHUNKS:
            coded = any(name == b"transfer-encoding" for name, _ in self.headers)  # faulty framing, there
            self.cycle.keep_alive = self.parser.should_keep_alive() and not coded
            self.cycle.waiting_for_100_continue = False

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.stage = "idle"
        if not self.parser.offers_upgrade:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()

    def head_without_upgrade(self, parser: _Parser) -> bytes:
        """The head that a parser has just read, without its offer."""
        lines = [b"%s %s HTTP/%s" % (parser.get_method(), self.url, parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] in _WITHOUT_CHUNKS:
            app = _without_chunks(app, cycle)
        if refusal := self._others.refusal(self, cycle.scope["path"]):
            app = cast("ASGI3Application", refusal.response())
        super()._start_asgi_task(cycle, app)

    @property
    def _may_answer(self) -> bool:
        """Whether what is written now is read as the answer to what is being received."""
        cycle = self._last_cycle
        if cycle is None or cycle.response_complete:
            return True
        return cycle.more_body and not cycle.response_started and not self.pipeline

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        """None before the first request, which uvicorn's type does not tell."""
        return self.cycle

    def _refuse(self, error: ApiError) -> None:
        self._others.note("malformed", self)
        if self._may_answer:
            self._write(error)
        self.transport.close()

    def _write(self, error: ApiError) -> None:
        response = error.response()
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", response.body]))


class _Parser(httptools.HttpRequestParser):
    """Reads on where llhttp stops: behind the head of a request that offers another protocol, and before its body.

    Such a head is read once more, without its offer and by a new parser, because the old one may take it for data that
    follows the last request of the connection.
    """

    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As uvicorn sets it, so that the first of several requests in one packet is answered.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def offers_upgrade(self) -> bool:
        """Whether the head offers what may be ignored, as HTTP/2 or a WebSocket; a CONNECT may not."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        unread = memoryview(data)
        while unread:
            unread = self._protocol.parser.read(unread)

    def read(self, data: memoryview[int]) -> memoryview[int]:
        """Returns what the protocol's next parser has to read."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            if not self.offers_upgrade:
                raise
            self._protocol.parser = _Parser(self._protocol)
            self._protocol.parser.read(memoryview(self._protocol.head_without_upgrade(self)))
            return data[stopped.args[0] :]
        return data[:0]


def _without_chunks(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """The app, whose answers of unknown length end where the connection does."""
    until_closed = False

    async def send(message: ASGISendEvent) -> None:
        nonlocal until_closed
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            until_closed = not any(name.lower() == b"content-length" for name, _ in headers)
            if until_closed:
                cycle.chunked_encoding = cycle.keep_alive = False
            elif cycle.keep_alive:
                message["headers"] = [*headers, (b"connection", b"keep-alive")]
        elif message["type"] == "http.response.body" and until_closed:
            cycle.expected_content_length = len(message.get("body", b""))
        await cycle.send(message)

    async def answer(scope: Scope, receive: ASGIReceiveCallable, _: ASGISendCallable) -> None:
        await app(scope, receive, send)

    return answer
