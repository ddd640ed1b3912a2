"""A second engine behind the door, as unlike ours as vLLM's: coroutines on an event loop of its own, and no model."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from chat_engine.config import EngineConfig
from chat_engine.errors import RequestCancelledError
from chat_engine.protocol import Sink
from chat_engine.request import ChatRequest, FinishReason, TokenEvent
from chat_engine.service.door import Door, Progress


class EchoEngine(Door[tuple[ChatRequest, Sink]]):
    """Says the prompt again and again, one token a turn. `before_step` is called before each; it may block or raise."""

    def __init__(self, config: EngineConfig, on_failure: Callable[[], None] | None = None) -> None:
        super().__init__(config.max_sequences + config.queue_room, config.stall_seconds)
        self.before_step: Callable[[list[object]], None] = lambda rows: None
        self._on_failure = on_failure
        self._woken = asyncio.Event()
        self._gone: set[str] = set()
        self._answers: set[asyncio.Task[None]] = set()
        self._running = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()

    def submit(self, request: ChatRequest, sink: Sink) -> None:
        self._enter(request.id, (request, sink))

    def close(self) -> None:
        super().close()
        self._thread.join()
        self._loop.close()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def _serve(self) -> None:
        while not self._is_over:
            await self._woken.wait()
            self._woken.clear()
            self._take_in()
        self._take_in()
        await asyncio.gather(*self._answers, return_exceptions=True)
        if self._on_failure and self._failed:
            self._on_failure()

    def _take_in(self) -> None:
        arrived, cancelled = self._take()
        self._gone |= cancelled
        for request, sink in arrived:
            answer = self._loop.create_task(self._answer(request, sink))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    async def _answer(self, request: ChatRequest, sink: Sink) -> None:
        made, begin, error = 0, time.monotonic(), None
        self._running += 1
        try:
            while made < request.max_tokens and request.id not in self._gone and not self._is_over:
                self.before_step([])
                made += 1
                self._note(1)
                if made < request.max_tokens:
                    sink(said(request, made))
                await asyncio.sleep(0)  # the others' turn
        except Exception:  # noqa: BLE001 - a step or a sink is broken, and so is the engine
            self._fail()
        self._gone.discard(request.id)
        reason = FinishReason.LENGTH
        if made < request.max_tokens and self._is_over:
            reason, error = FinishReason.ERROR, self._stop_error()
        elif made < request.max_tokens:
            reason, error = FinishReason.CANCELLED, RequestCancelledError("the request was cancelled")
        self._running -= 1
        self._note(0)
        self._ended(request, reason, Progress(made, 0, begin, begin if made else None))
        sink(said(request, made, reason, error))

    def _note(self, made: int) -> None:
        with self._numbers() as stats:
            stats.running = self._running
            stats.steps += made
            stats.generation_tokens += made


def said(request: ChatRequest, made: int, reason: FinishReason | None = None, error: object = None) -> TokenEvent:
    """The event of the token `made`; an end by an error has no text."""
    text = "" if error or not made else f"{request.prompt_ids[(made - 1) % len(request.prompt_ids)]} "
    return TokenEvent(text, len(request.prompt_ids), made, 0, finish_reason=reason, error=error)


def echoed(request: ChatRequest) -> str:
    """The whole answer."""
    return "".join(said(request, made).text for made in range(1, request.max_tokens + 1))
