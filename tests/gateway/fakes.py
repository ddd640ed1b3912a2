"""A stand-in for the SDK that answers from a script, in the process. test_fakes.py holds it against the real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from typing_extensions import Unpack

from triton_chat.client import AsyncChatClient
from triton_chat.embeddings import EmbeddingResult, EmbedOptions, Inputs
from triton_chat.errors import RequestCancelledError, TritonChatError
from triton_chat.streams import AsyncChatStream
from triton_chat.tokenizer import TokenizeOptions
from triton_chat.types import (
    Call,
    CallOptions,
    ChatEvent,
    Messages,
    ModelInfo,
    ModelKind,
    TokenizerInfo,
    Tokens,
    ToolCallDelta,
)

Script = Callable[[Call], AsyncIterator[ChatEvent]]
"""Makes the events of an answer; it may raise what the SDK raises, or wait for as long as it likes."""

MAX_MODEL_LEN = 2048

WAIT_S = 10.0
"""How long a test may wait for what is sure to come."""


def says(*texts: str, finish_reason: str = "stop") -> Script:
    """One event and one token per text; the last has the finish reason."""

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        for count, text in enumerate(texts, start=1):
            yield event(text, count, finish_reason if count == len(texts) else "")

    return script


def plays(*events: ChatEvent) -> Script:
    """These events."""

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        for played in events:
            yield played

    return script


def calls(*functions: tuple[str, str], reasoning: str = "", finish_reason: str = "tool_calls") -> Script:
    """Calls of functions, each a name and its arguments, which come in two parts."""
    thought = [ChatEvent("", "", 7, 1, 3, reasoning=reasoning, num_reasoning_tokens=1)] if reasoning else []
    deltas = [
        delta
        for index, (name, arguments) in enumerate(functions)
        for delta in (
            ToolCallDelta(index, id=f"call_{index}", name=name),
            ToolCallDelta(index, arguments=arguments[: len(arguments) // 2]),
            ToolCallDelta(index, arguments=arguments[len(arguments) // 2 :]),
        )
    ]
    spoken = [
        ChatEvent("", "", 7, count, 3, tool_calls=(delta,), num_reasoning_tokens=len(thought))
        for count, delta in enumerate(deltas, start=1 + len(thought))
    ]
    count = len(thought) + len(spoken)
    last = ChatEvent("", finish_reason, 7, count, 3, num_reasoning_tokens=len(thought))
    return plays(*thought, *spoken, last)


def fails(error: Exception, *texts: str) -> Script:
    """Some texts, then an error."""

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        for count, text in enumerate(texts, start=1):
            yield event(text, count)
        raise error

    return script


def hangs(*texts: str) -> Script:
    """Some texts, then nothing, until the stream is cancelled."""

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        for count, text in enumerate(texts, start=1):
            yield event(text, count)
        await asyncio.Event().wait()

    return script


def event(text: str, num_output_tokens: int = 1, finish_reason: str = "") -> ChatEvent:
    return ChatEvent(text, finish_reason, num_input_tokens=7, num_output_tokens=num_output_tokens, num_cached_tokens=3)


def model(name: str, kind: ModelKind = "chat", *, ready: bool = True) -> ModelInfo:
    return ModelInfo(name, "1", "READY" if ready else "UNAVAILABLE", "", ready, kind)


class FakeStream(AsyncChatStream):
    """The answer to one call. `cancelled` is set when the work was ended before it was complete."""

    def __init__(self, call: Call, script: Script) -> None:
        self.call = call
        self.request_id = call.request_id
        self.cancelled = threading.Event()
        self._events = script(call)
        self._reading: asyncio.Task[ChatEvent] | None = None
        self._over = False

    async def __anext__(self) -> ChatEvent:
        if self._over:
            raise StopAsyncIteration
        self._reading = asyncio.create_task(self._next())
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self._over:
                raise RequestCancelledError("the request was cancelled before the answer was complete") from None
            self.cancel()
            raise
        except StopAsyncIteration:
            self._over = True
            raise
        except TritonChatError:
            self._over = True
            raise

    async def _next(self) -> ChatEvent:
        return await self._events.__anext__()

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self.cancelled.set()
            if self._reading is not None:
                self._reading.cancel()

    def __del__(self) -> None:
        """A stream that is dropped has no connection to close."""


class FakeClient(AsyncChatClient):
    """What is asked stays in `streams`; `script`, `catalogue` and `failure` may be replaced at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Script = says("Hello", " there")
        self.catalogue = [model("chat"), model("chat_unary", "chat_unary"), model("embeddings", "embeddings")]
        self.template_kwargs: tuple[str, ...] = ()
        """What the chat template reads beside the conversation."""
        self.template: str | None = None
        """The text of the chat template."""
        self.tokenizer_failure: TritonChatError | None = None
        self.tokenizer_release: asyncio.Event | None = None
        """Keeps `tokenizer_info` waiting until it is set."""
        self.failure: TritonChatError | None = None
        """Of everything but streams."""
        self.streams: list[FakeStream] = []
        self.others: list[tuple[str, dict[str, Any]]] = []
        """Calls of `tokenize`, `detokenize`, `tokenizer_info` and `embed`: the name and the arguments."""
        self.times_asked_for_models = 0
        self.closed = False

    @property
    def calls(self) -> list[Call]:
        return [stream.call for stream in self.streams]

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> FakeStream:
        call = Call.of(messages, options)
        self.streams.append(FakeStream(replace(call, request_id=call.request_id or "fake"), self.script))
        return self.streams[-1]

    async def models(self) -> list[ModelInfo]:
        self.times_asked_for_models += 1
        await asyncio.sleep(0)
        self._raise()
        return list(self.catalogue)

    async def tokenize(
        self,
        messages: Messages | None = None,
        *,
        text: str | None = None,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> Tokens:
        """A token per character; a conversation becomes the texts of its messages."""
        self._note("tokenize", locals())
        if messages is not None:
            text = messages if isinstance(messages, str) else "".join(str(message["content"]) for message in messages)
        assert text is not None
        names = tuple(text) if options.get("return_token_strs") else ()
        return Tokens(tuple(map(ord, text)), text, MAX_MODEL_LEN, names)

    async def tokenizer_info(
        self, model: str = "chat", *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> TokenizerInfo:
        self._note("tokenizer_info", locals())
        if self.tokenizer_release is not None:
            await self.tokenizer_release.wait()
        if self.tokenizer_failure is not None:
            raise self.tokenizer_failure
        config = {"tokenizer_class": "Fake", "eos_token": "</s>"}
        if self.template is not None:
            config["chat_template"] = self.template
        return TokenizerInfo(f"org/{model}-1B", MAX_MODEL_LEN, config, self.template_kwargs)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Tokens:
        self._note("detokenize", locals())
        return Tokens(tuple(token_ids), "".join(map(chr, token_ids)), MAX_MODEL_LEN)

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str = "embeddings",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingResult:
        """Input `i` points along axis `i`, wrapped around; its tokens are its elements."""
        self._note("embed", locals())
        size = options.get("dimensions") or 4
        rows = np.eye(size, dtype=np.float32)[[index % size for index in range(len(inputs))]]
        return EmbeddingResult(rows, [len(text) for text in inputs])

    async def check_live(self) -> None:
        self._raise()

    async def is_ready(self, model: str | None = None) -> bool:
        return self.failure is None and (model is None or any(m.ready for m in self.catalogue if m.name == model))

    async def close(self) -> None:
        self.closed = True
        for stream in self.streams:
            stream.cancel()

    def _note(self, method: str, arguments: dict[str, Any]) -> None:
        self.others.append((method, {name: value for name, value in arguments.items() if name != "self"}))
        self._raise()

    def _raise(self) -> None:
        if self.failure is not None:
            raise self.failure
