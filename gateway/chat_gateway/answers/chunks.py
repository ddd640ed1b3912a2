"""The objects of a stream, for both endpoints: the `openai` package's own types.

To build and serialise one takes about 15 us, many times what all else costs. So a chunk of plain text, which most are,
is one that was serialised once, with the text put in; a test holds the two equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from json.encoder import encode_basestring
from operator import attrgetter
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar, cast

from openai import BaseModel
from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import (
    Choice,
    ChoiceDelta,
    ChoiceDeltaFunctionCall,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
    ChoiceLogprobs,
)
from openai.types.completion_choice import Logprobs

from chat_gateway.answers.logprobs import CompletionLogprobs, chat_logprobs
from chat_gateway.answers.messages import FinishReason, Style
from chat_gateway.answers.sse import data
from triton_chat.types import ChatEvent, ToolCallDelta

CompletionReason = Literal["stop", "length"]
Fill = Callable[[str], bytes]
Part = TypeVar("Part", bound=BaseModel)
Key = TypeVar("Key")
"""Of chunks that differ in one text alone."""

_HOLE: Final = "\0"
_HOLE_JSON: Final = '"\\u0000"'


class Head(TypedDict):
    """What an answer and each of its chunks begin with."""

    id: str
    created: int
    model: str


class _Chunks(ABC, Generic[Key]):
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
        self._fill: dict[Key, Fill] = {}

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


class ChatChunks(_Chunks[tuple[int, str]]):
    """`chat.completion.chunk`s. Each choice has its role first and its finish reason last.

    Between them are its reasoning, its text and its calls as they come, of each call id and name before its arguments.
    """

    def __init__(
        self,
        head: Head,
        *,
        include_usage: bool,
        usage_so_far: Callable[[], CompletionUsage] | None = None,
        style: Style = Style(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__(head, include_usage=include_usage, usage_so_far=usage_so_far)
        self._style = style
        self._begun: set[int] = set()

    def encode(self, index: int, event: ChatEvent) -> bytes:
        """See `sse.Chunks`."""
        parts = []
        if index not in self._begun:
            self._begun.add(index)
            parts.append(self._first(index, event))
        if event.reasoning and self._style.reasoning:
            parts.append(self._filled(index, "reasoning", event.reasoning, _reasoning))
        if event.logprobs or event.token_ids:
            parts.append(_data(self._told(index, event)))
        elif event.text:
            parts.append(self._filled(index, "content", event.text, _content))
        if event.tool_calls:
            parts += self._calls(index, event.tool_calls)
        if event.finish_reason:
            reason = self._style.finish_reason(event.finish_reason)
            parts.append(_data(self._chunk(index, ChoiceDelta(), finish_reason=reason)))
        return b"".join(parts)

    def _first(self, index: int, event: ChatEvent) -> bytes:
        """The role; as at OpenAI, the content is null where something else comes first."""
        something_else = event.tool_calls or (event.reasoning and self._style.reasoning)
        content = None if something_else and not event.text else ""
        chunk = self._chunk(index, ChoiceDelta(role="assistant", content=content, refusal=None))
        return _data(_with(chunk, prompt_token_ids=event.prompt_token_ids))

    def _told(self, index: int, event: ChatEvent) -> ChatCompletionChunk:
        """A text with what was asked for about its tokens."""
        logprobs = ChoiceLogprobs(content=chat_logprobs(event.logprobs), refusal=None) if event.logprobs else None
        chunk = self._chunk(index, ChoiceDelta(content=event.text), logprobs=logprobs)
        _with(chunk.choices[0], token_ids=event.token_ids)
        return chunk

    def _calls(self, index: int, deltas: Sequence[ToolCallDelta]) -> Iterator[bytes]:
        if self._style.function_call:
            deltas = [delta for delta in deltas if delta.index == 0]
        for call, parts in groupby(deltas, key=attrgetter("index")):
            first, *others = parts
            if first.name:
                yield _data(self._chunk(index, self._opening(first)))
            if arguments := "".join(delta.arguments for delta in (first, *others)):
                yield self._filled(index, f"arguments of {call}", arguments, partial(self._arguments, call))

    def _opening(self, delta: ToolCallDelta) -> ChoiceDelta:
        if self._style.function_call:
            return ChoiceDelta(function_call=ChoiceDeltaFunctionCall(name=delta.name, arguments=""))
        function = ChoiceDeltaToolCallFunction(name=delta.name, arguments="")
        call = ChoiceDeltaToolCall(index=delta.index, id=delta.id, type="function", function=function)
        return ChoiceDelta(tool_calls=[call])

    def _arguments(self, call: int, arguments: str) -> ChoiceDelta:
        if self._style.function_call:
            return ChoiceDelta(function_call=ChoiceDeltaFunctionCall(arguments=arguments))
        function = ChoiceDeltaToolCallFunction(arguments=arguments)
        return ChoiceDelta(tool_calls=[ChoiceDeltaToolCall(index=call, function=function)])

    def _filled(self, index: int, kind: str, text: str, delta: Callable[[str], ChoiceDelta]) -> bytes:
        key = (index, kind)
        if key not in self._fill:
            self._fill[key] = self._filler(lambda text: self._chunk(index, delta(text)))
        return self._fill[key](text)

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


class CompletionChunks(_Chunks[int]):
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
            finish_reason=cast("CompletionReason", event.finish_reason or None),
        )
        _with(choice, prompt_token_ids=event.prompt_token_ids, token_ids=event.token_ids)
        return self._object([choice], **self._extra)

    def _next_logprobs(self, index: int, event: ChatEvent) -> Logprobs:
        return self._logprobs[index].add(event.logprobs, event.prompt_logprobs, event.text)

    def _object(self, choices: list[CompletionChoice], **extra: Any) -> Completion:
        return Completion(**self._head, object="text_completion", choices=choices, **extra)


def _content(text: str) -> ChoiceDelta:
    return ChoiceDelta(content=text)


def _reasoning(text: str) -> ChoiceDelta:
    """Under both of the names that clients read."""
    return ChoiceDelta.model_validate({"reasoning": text, "reasoning_content": text})


def _with(part: Part, **ids: Sequence[int]) -> Part:
    """With vLLM's fields for token ids, where there are any."""
    for name, values in ids.items():
        if values:
            setattr(part, name, list(values))
    return part


def _template(chunk: BaseModel) -> Fill:
    around = chunk.model_dump_json(exclude_unset=True).split(_HOLE_JSON)
    return lambda text: data(encode_basestring(text).join(around))


def _data(chunk: BaseModel) -> bytes:
    return data(chunk.model_dump_json(exclude_unset=True))
