"""A generation as server-sent events, as OpenAI sends them.

sse-starlette is not used: it patches uvicorn's signal handler when it is imported, cuts streams at SIGTERM, which here
are to finish within the drain time, and spends a lock and a cancel scope on each chunk. What is needed is below.
Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

from openai.types import CompletionUsage
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from chat_gateway.answers.generation import Generation
from chat_gateway.errors import ApiError, from_client
from chat_gateway.http.disconnect import unless_gone
from chat_gateway.http.stopping import cut_short, is_stopping
from chat_gateway.settings import GatewaySettings
from triton_chat.errors import RequestCancelledError, TritonChatError
from triton_chat.types import ChatEvent

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
_LINE_ENDS: Final = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


class Chunks(Protocol):
    """Makes the events of one stream."""

    def encode(self, index: int, event: ChatEvent) -> bytes:
        """What a choice has to say now; maybe nothing."""
        ...

    def usage(self, usage: CompletionUsage) -> bytes:
        """What comes after the last choice has ended; nothing if it was not asked for."""
        ...


class EventStream(Response):
    """The answer to a request with `stream: true`.

    Nothing is sent before the first event of the engine is there, however long that takes: until then an error is
    raised, and so becomes a proper status. A later one becomes the stream's last event, as does the end of the drain
    time. A caller who goes cancels the generation, before and after.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, chunks: Chunks, settings: GatewaySettings) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._generation = generation
        self._chunks = chunks
        self._settings = settings
        self._started = False
        self._owes_end = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises TritonChatError as long as nothing has been sent."""
        try:
            await unless_gone(receive, self._run(send))
        except RequestCancelledError:
            if not self._started:
                raise
        except asyncio.CancelledError:
            if not (self._started and is_stopping(scope)):
                raise
            if self._owes_end:
                await self._end(_event(cut_short(self._settings.retry_after)), send)

    async def _run(self, send: Send) -> None:
        async with self._generation as generation:
            events = await generation.pending()
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._owes_end = True
            try:
                await self._stream(events, send)
            except TritonChatError as error:
                await self._end(error_event(error, self._settings.retry_after), send)

    async def _stream(self, events: dict[int, ChatEvent], send: Send) -> None:
        generation = self._generation
        with Silence(self._settings.keep_alive, generation.nudge) as silence:
            while not generation.complete:
                chunks = self._encode(events) or (KEEP_ALIVE if silence.too_long else b"")
                if chunks:
                    await send(_body(chunks))
                    silence.begin()
                events = await generation.pending()
        await self._end(self._encode(events) + self._chunks.usage(generation.usage()) + DONE, send)

    async def _end(self, content: bytes, send: Send) -> None:
        await send(_body(content, more=False))
        self._owes_end = False

    def _encode(self, events: dict[int, ChatEvent]) -> bytes:
        return b"".join(self._chunks.encode(index, event) for index, event in events.items())


class Silence:
    """Calls `notify` when nobody has called `begin` for so long. Its timer is set once a limit, not once a chunk."""

    def __init__(self, limit_s: float, notify: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._notify = notify
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Silence:
        self.begin()
        self._timer = self._loop.call_later(self._limit_s, self._check)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def begin(self) -> None:
        self._since = self._loop.time()

    @property
    def too_long(self) -> bool:
        return self._loop.time() - self._since >= self._limit_s

    def _check(self) -> None:
        left = self._since + self._limit_s - self._loop.time()
        if left <= 0:
            self._notify()
            left = self._limit_s
        self._timer = self._loop.call_later(left, self._check)


def data(json: str) -> bytes:
    """One event. Some readers take Unicode's other line ends for the end of an event's line, so they are escaped."""
    if not json.isascii():
        for raw, escaped in _LINE_ENDS:
            json = json.replace(raw, escaped)
    return f"data: {json}\n\n".encode()


def error_event(error: TritonChatError, retry_after: int) -> bytes:
    """OpenAI's error body as an event; the `openai` package raises it as an APIError."""
    return _event(from_client(error, retry_after))


def _event(error: ApiError) -> bytes:
    return data(to_json(error.body()).decode())


def _body(content: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}
