"""One answer being made: a thread with an event loop that reads the stream and writes the turn's answer.

A script run of Streamlit ends whenever a widget is touched, and the next one begins at once; the stream lives on beside
them. It ends when it is complete, when somebody stops it, or when nobody looks any more. In each case the connection is
closed, by which the gateway knows to free the engine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall

from chat_page import problems
from chat_page.conversation import Answer, Call, Message, Turn
from chat_page.gateway import BrokenOffError, NotAGatewayError, connect, list_chat_models
from chat_page.options import Options
from chat_page.settings import PageSettings

_POLL_S = 0.05
"""How late a stop is noticed, at most."""
LEASE_S = 10.0
"""How long an answer goes on that nobody looks at: longer than the gap between two script runs, or than a short loss of
the browser's connection."""


class Generation:
    """Runs from its creation on. `turn.answer` is always a whole snapshot, so any thread may read it."""

    def __init__(
        self, settings: PageSettings, turn: Turn, messages: list[Message], options: Options, *, lease_s: float = LEASE_S
    ) -> None:
        self.turn = turn
        self._settings = settings
        self._messages = messages
        self._options = options
        self._lease_s = lease_s
        self._looked_at = time.monotonic()
        self._stop = threading.Event()
        self._ended = threading.Event()
        turn.answer = Answer(model=options.model or "")
        threading.Thread(target=self._work, name="generation", daemon=True).start()

    def stop(self) -> None:
        """Returns at once; what has come so far stays."""
        self._stop.set()

    def look(self, seconds: float) -> bool:
        """Waits until the answer has ended, `seconds` at most; says whether it has. Keeps the answer going."""
        self._looked_at = time.monotonic()
        return self._ended.wait(seconds)

    def _work(self) -> None:
        try:
            asyncio.run(self._watch())
        finally:
            self._ended.set()

    async def _watch(self) -> None:
        streaming = asyncio.create_task(self._answer())
        while not (streaming.done() or self._unwanted()):
            await asyncio.wait({streaming}, timeout=_POLL_S)
        streaming.cancel()
        await asyncio.wait({streaming})
        if streaming.cancelled():
            self._update(state="stopped")
        elif (error := streaming.exception()) is not None:
            self._update(state="failed", problem=problems.report(error))

    def _unwanted(self) -> bool:
        return self._stop.is_set() or time.monotonic() - self._looked_at > self._lease_s

    async def _answer(self) -> None:
        async with connect(self._settings) as client:
            model = self._options.model or (await list_chat_models(client))[0]
            self._update(model=model)
            await self._read(client, model)
        if not self.turn.answer.finish_reason:
            raise BrokenOffError if self.turn.answer.characters else NotAGatewayError
        self._update(state="complete")

    async def _read(self, client: AsyncOpenAI, model: str) -> None:
        sent_at = time.perf_counter()
        messages: Any = self._messages
        stream = await client.chat.completions.create(
            model=model,
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **self._options.arguments(),
        )
        async with stream:
            async for chunk in stream:
                self._take(chunk, time.perf_counter() - sent_at)

    def _take(self, chunk: ChatCompletionChunk, elapsed_s: float) -> None:
        """The last chunk, which has the usage, has no choice; its time is not that of a token."""
        if chunk.usage is not None:
            self._update(prompt_tokens=chunk.usage.prompt_tokens, completion_tokens=chunk.usage.completion_tokens)
        for choice in chunk.choices:
            delta = choice.delta
            self.turn.answer = self.turn.answer.grown(
                delta.content or "",
                elapsed_s,
                choice.finish_reason or "",
                reasoning=_reasoning(delta),
                pieces=[(piece.index, _call(piece)) for piece in delta.tool_calls or ()],
            )

    def _update(self, **changes: Any) -> None:
        self.turn.answer = replace(self.turn.answer, **changes)


def _reasoning(delta: ChoiceDelta) -> str:
    """It has two names, of which the openai package knows none."""
    extra = delta.model_extra or {}
    return str(extra.get("reasoning_content") or extra.get("reasoning") or "")


def _call(piece: ChoiceDeltaToolCall) -> Call:
    function = piece.function
    return Call(piece.id or "", (function and function.name) or "", (function and function.arguments) or "")
