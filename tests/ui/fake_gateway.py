"""A gateway in one file: HTTP and server-sent events, as much of them as the page uses.

What it answers to a chat request is a function the test gives it. tests/ui/test_fake_gateway.py holds it against the
real openai package.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 10.0
"""How long a test may wait for what is sure to come."""
HOLD_S = 60.0
"""How long an answer is held at most: longer than the page's patience."""


@dataclass
class RefusedError(Exception):
    """An answer with an error status."""

    status: int
    message: str = "no"
    code: str | None = None
    retry_after: int | None = None


@dataclass
class Received:
    """One chat request as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    connection: socket.socket
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when the client hung up before the answer was complete."""

    @property
    def question(self) -> str:
        return str(self.body["messages"][-1]["content"])

    def hold(self, until: threading.Event | None = None, seconds: float = HOLD_S) -> None:
        """Says nothing until the test lets go, the client hangs up (BrokenPipeError) or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until is not None and until.is_set()):
            readable, _, _ = select.select([self.connection], [], [], 0.01)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise BrokenPipeError


Reply = Callable[[Received], Iterator[str | dict[str, Any]]]
"""Yields pieces of text, or whole events."""


def say(*pieces: str, finish: str = "stop", tokens: int | None = None, pause_s: float = 0.0) -> Reply:
    """The pieces, one event each, then the finish reason and the usage."""

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        for piece in pieces:
            yield piece
            if pause_s:
                received.hold(seconds=pause_s)
        yield event(received, finish=finish)
        yield usage(received, len(pieces) if tokens is None else tokens)

    return reply


def think_and_call(reasoning: str, *calls: tuple[str, str, str], finish: str = "tool_calls") -> Reply:
    """Reasoning, then calls: id, name and arguments of each, the arguments in two pieces, as OpenAI streams them."""

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        if reasoning:
            yield delta(received, {"reasoning": reasoning, "reasoning_content": reasoning})
        for index, (identity, name, arguments) in enumerate(calls):
            first = {"index": index, "id": identity, "type": "function", "function": {"name": name, "arguments": ""}}
            yield delta(received, {"tool_calls": [first]})
            for piece in (arguments[:5], arguments[5:]):
                yield delta(received, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield event(received, finish=finish)
        yield usage(received, 9)

    return reply


def think_and_say(reasoning: str, text: str, until: threading.Event | None = None) -> Reply:
    """Reasoning under its older name alone, then text; with `until`, nothing between the two before that."""

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        yield delta(received, {"reasoning_content": reasoning})
        if until is not None:
            received.hold(until)
        yield text
        yield event(received, finish="stop")
        yield usage(received, 9)

    return reply


def in_turn(*replies: Reply) -> Reply:
    """Each request gets the next; the last goes on."""
    left = list(replies)

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        return (left.pop(0) if len(left) > 1 else left[0])(received)

    return reply


def say_and_hold(text: str, until: threading.Event | None = None) -> Reply:
    """The text, and then nothing for as long as anybody listens."""

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        if text:
            yield text
        received.hold(until)
        yield event(received, finish="stop")

    return reply


def refuse(status: int, message: str = "no", code: str | None = None, retry_after: int | None = None) -> Reply:
    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        raise RefusedError(status, message, code, retry_after)

    return reply


def break_off(text: str, error: str | None = None) -> Reply:
    """The text, then an error event, or the end of the connection without a word."""

    def reply(received: Received) -> Iterator[str | dict[str, Any]]:
        yield text
        if error is None:
            raise ConnectionAbortedError
        yield {"error": {"message": error, "type": "server_error", "param": None, "code": "engine_failed"}}

    return reply


def event(received: Received, text: str = "", finish: str | None = None) -> dict[str, Any]:
    return delta(received, {"content": text} if text else {}, finish)


def delta(received: Received, fields: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return _chunk(received, [{"index": 0, "delta": fields, "finish_reason": finish, "logprobs": None}])


def usage(received: Received, tokens: int) -> dict[str, Any]:
    return _chunk(received, []) | {
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
    }


def _chunk(received: Received, choices: list[dict[str, Any]]) -> dict[str, Any]:
    model = received.body["model"]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "choices": choices,
        "usage": None,
    }


class FakeGateway:
    """Listens on a free port of the loopback from its creation to `stop`."""

    def __init__(self, port: int = 0) -> None:
        self.models: list[dict[str, Any]] = [_model("chat"), _model("embeddings")]
        self.reply: Reply = say("Hello", " world", "!")
        self.key: str | None = None
        """The one it accepts; None for any."""
        self.is_something_else = False
        """Answers with a web page, as whatever else may listen at a wrong address."""
        self.received: list[Received] = []
        self._arrived = threading.Condition()
        self._server = _Server(self, port)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int) -> Received:
        """The `count`-th chat request, which may still be on its way."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, WAIT_S), f"no request number {count}"
            return self.received[count - 1]

    def add(self, received: Received) -> None:
        with self._arrived:
            self.received.append(received)
            self._arrived.notify_all()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "triton-chat"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, gateway: FakeGateway, port: int) -> None:
        self.gateway = gateway
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.server.gateway.is_something_else:
            self._something_else()
            return
        try:
            self._check(self.path == "/v1/models")
        except RefusedError as refusal:
            self._refuse(refusal)
        else:
            self._json(200, {"object": "list", "data": self.server.gateway.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.gateway.is_something_else:
            self._something_else()
            return
        try:
            self._check(self.path == "/v1/chat/completions")
        except RefusedError as refusal:
            self._refuse(refusal)
            return
        received = Received(body, {name.lower(): value for name, value in self.headers.items()}, self.connection)
        self.server.gateway.add(received)
        try:
            self._stream(received, self.server.gateway.reply(received))
        except RefusedError as refusal:
            self._refuse(refusal)
        except (BrokenPipeError, ConnectionResetError):
            received.gone.set()
        except ConnectionAbortedError:
            pass

    def _check(self, known: bool) -> None:
        key = self.server.gateway.key
        if key is not None and self.headers["authorization"] != f"Bearer {key}":
            raise RefusedError(401, "wrong key", "invalid_api_key")
        if not known:
            raise RefusedError(404, f"there is no {self.path}")

    def _stream(self, received: Received, reply: Iterator[str | dict[str, Any]]) -> None:
        """Chunked, so that a lost end is noticed; the first event is made before the status goes out."""
        first = next(reply)
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("connection", "close")
        self.end_headers()
        self._event(received, first)
        for item in reply:
            self._event(received, item)
        self._write("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, received: Received, item: str | dict[str, Any]) -> None:
        document = event(received, item) if isinstance(item, str) else item
        self._write(f"data: {json.dumps(document, ensure_ascii=False)}\n\n")

    def _write(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _refuse(self, refusal: RefusedError) -> None:
        error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
        self._json(refusal.status, {"error": error}, refusal.retry_after)

    def _something_else(self) -> None:
        self._send(200, "text/html", b"<h1>It works!</h1>")

    def _json(self, status: int, document: dict[str, Any], retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self._send(status, "application/json", json.dumps(document).encode(), headers)

    def _send(self, status: int, content_type: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": content_type, "content-length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Tests need no access log."""
