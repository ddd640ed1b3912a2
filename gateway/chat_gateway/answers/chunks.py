"""The objects of a stream, for both endpoints: the `openai` package's own types.

To build and serialise one takes about 15 us, many times what all else costs. So a chunk of plain text, which most are,
is one that was serialised once, with the text put in; a test holds the two equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring
from typing import Any, Final, Literal, TypedDict, TypeVar, cast

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import Choice, ChoiceDelta, ChoiceLogprobs
from openai.types.completion_choice import Logprobs

from chat_gateway.answers.logprobs import CompletionLogprobs, chat_logprobs
from chat_gateway.answers.sse import data
from triton_chat.types import ChatEvent

FinishReason = Literal["stop", "length"]
Fill = Callable[[str], bytes]
Part = TypeVar("Part", bound=BaseModel)

_HOLE: Final = "\0"
_HOLE_JSON: Final = '"\\u0000"'


class Head(TypedDict):
    """What an answer and each of its chunks begin with."""

    id: str
    created: int
    model: str


class _Chunks(ABC):
    """What the two endpoints share.

    Args:
        head: of each chunk.
        include_usage: a last chunk has the usage, and all others have `usage: null`.
        usage_so_far: tells what all others have in its place, if it is wanted.
    """

    def __init__(
        self, head: Head, *, include_usage: bool, usage_so_far: Callable[[], CompletionUsage] | None = None
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        self._usage_so_far = usage_so_far
        self._fill: dict[int, Fill] = {}

    def usage(self, usage: CompletionUsage) -> bytes:
        """See `sse.Chunks`."""
        return _data(self._object([], usage=usage)) if self._include_usage else b""

    @property
    def _extra(self) -> dict[str, Any]:
        if not self._include_usage:
            return {}
        return {"usage": self._usage_so_far() if self._usage_so_far else None}

    def _filler(self, chunk: Callable[[str], BaseModel]) -> Fill:
        """Makes chunks of plain text: from a template, unless each has a usage of its own."""
        return (lambda text: _data(chunk(text))) if self._usage_so_far else _template(chunk(_HOLE))

    @abstractmethod
    def _object(self, choices: list[Any], **extra: Any) -> BaseModel: ...


class ChatChunks(_Chunks):
    """`chat.completion.chunk`s. Each choice has its role first, then its text, then its finish reason."""

    def encode(self, index: int, event: ChatEvent) -> bytes:
        """See `sse.Chunks`."""
        parts = []
        if index not in self._fill:
            self._fill[index] = self._filler(lambda text: self._chunk(index, ChoiceDelta(content=text)))
            first = self._chunk(index, ChoiceDelta(role="assistant", content="", refusal=None))
            parts.append(_data(_with(first, prompt_token_ids=event.prompt_token_ids)))
        if event.logprobs or event.token_ids:
            parts.append(_data(self._told(index, event)))
        elif event.text:
            parts.append(self._fill[index](event.text))
        if event.finish_reason:
            parts.append(_data(self._chunk(index, ChoiceDelta(), finish_reason=finish_reason(event.finish_reason))))
        return b"".join(parts)

    def _told(self, index: int, event: ChatEvent) -> ChatCompletionChunk:
        """A text with what was asked for about its tokens."""
        logprobs = ChoiceLogprobs(content=chat_logprobs(event.logprobs), refusal=None) if event.logprobs else None
        chunk = self._chunk(index, ChoiceDelta(content=event.text), logprobs=logprobs)
        _with(chunk.choices[0], token_ids=event.token_ids)
        return chunk

    def _chunk(
        self,
        index: int,
        delta: ChoiceDelta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReason | None = None,
    ) -> ChatCompletionChunk:
        choice = Choice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return self._object([choice], **self._extra)

    def _object(self, choices: list[Choice], **extra: Any) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._head, object="chat.completion.chunk", choices=choices, **extra)


class CompletionChunks(_Chunks):
    """`text_completion`s, each with some text; the last one of a choice has the finish reason too."""

    def __init__(
        self,
        head: Head,
        *,
        include_usage: bool,
        usage_so_far: Callable[[], CompletionUsage] | None = None,
        logprobs: int | None = None,
    ) -> None:
        super().__init__(head, include_usage=include_usage, usage_so_far=usage_so_far)
        self._logprobs = defaultdict[int, CompletionLogprobs](lambda: CompletionLogprobs(logprobs))

    def encode(self, index: int, event: ChatEvent) -> bytes:
        """See `sse.Chunks`."""
        if event.logprobs or event.prompt_logprobs or event.token_ids or event.prompt_token_ids or event.finish_reason:
            return _data(self._chunk(index, event))
        if not event.text:
            return b""
        if index not in self._fill:
            self._fill[index] = self._filler(lambda text: self._chunk(index, ChatEvent(text)))
        return self._fill[index](event.text)

    def _chunk(self, index: int, event: ChatEvent) -> Completion:
        # Constructed unchecked, because the type does not know the null that OpenAI sends before the last chunk.
        choice = CompletionChoice.model_construct(
            index=index,
            text=event.text,
            logprobs=self._next_logprobs(index, event) if event.logprobs or event.prompt_logprobs else None,
            finish_reason=cast("FinishReason", event.finish_reason or None),
        )
        _with(choice, prompt_token_ids=event.prompt_token_ids, token_ids=event.token_ids)
        return self._object([choice], **self._extra)

    def _next_logprobs(self, index: int, event: ChatEvent) -> Logprobs:
        return self._logprobs[index].add(event.logprobs, event.prompt_logprobs, event.text)

    def _object(self, choices: list[CompletionChoice], **extra: Any) -> Completion:
        return Completion(**self._head, object="text_completion", choices=choices, **extra)


def finish_reason(given: str) -> FinishReason:
    """The engine has no others."""
    return cast("FinishReason", given)


def _with(part: Part, **ids: Sequence[int]) -> Part:
    """With vLLM's fields for token ids, where there are any."""
    for name, values in ids.items():
        if values:
            setattr(part, name, list(values))
    return part


def _template(chunk: BaseModel) -> Fill:
    before, after = chunk.model_dump_json(exclude_unset=True).split(_HOLE_JSON)
    return lambda text: data(f"{before}{encode_basestring(text)}{after}")


def _data(chunk: BaseModel) -> bytes:
    return data(chunk.model_dump_json(exclude_unset=True))
