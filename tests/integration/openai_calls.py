"""Questions to a real gateway through the `openai` package, in each of the ways that it offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from openai import AsyncOpenAI, OpenAI
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from local.gateway import LocalGateway

Endpoint = Literal["chat", "completions"]
Way = Literal["sync", "sync stream", "async", "async stream"]
WAYS: tuple[Way, ...] = ("sync", "sync stream", "async", "async stream")
TWO_WAYS: tuple[Way, ...] = ("sync", "async stream")
"""Enough for what the other two share with them."""

CALL_S = 60.0


@dataclass
class Choice:
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[Any] = field(default_factory=list)
    """Of `chat`: one entry a token. Of `completions`: the objects as they came."""


@dataclass
class Answer:
    """The same whether it came in pieces or not."""

    id: str = ""
    model: str = ""
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: CompletionUsage | None = None

    @property
    def texts(self) -> list[str]:
        """By index."""
        return [self.choices[index].text for index in range(len(self.choices))]

    @property
    def only(self) -> Choice:
        (choice,) = self.choices.values()
        return choice

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the prompt and of the answers."""
        assert self.usage
        assert self.usage.total_tokens == self.usage.prompt_tokens + self.usage.completion_tokens
        return self.usage.prompt_tokens, self.usage.completion_tokens

    @property
    def cached_tokens(self) -> int:
        assert self.usage
        assert self.usage.prompt_tokens_details
        return self.usage.prompt_tokens_details.cached_tokens or 0

    def add(self, part: Any) -> None:
        """A chunk, or all of it."""
        assert self.id in ("", part.id)
        self.id, self.model = part.id, part.model
        self.usage = part.usage or self.usage
        for given in part.choices:
            choice = self.choices.setdefault(given.index, Choice())
            assert choice.finish_reason is None, "something came after the end"
            choice.text += _text(part, given)
            choice.finish_reason = given.finish_reason
            if given.logprobs is not None:
                choice.logprobs += given.logprobs.content if hasattr(given.logprobs, "content") else [given.logprobs]


def whole(parts: Iterable[Any]) -> Answer:
    answer = Answer()
    for part in parts:
        answer.add(part)
    return answer


def options(gateway: LocalGateway) -> dict[str, Any]:
    """For a client that tries once."""
    return {"base_url": gateway.openai_url, "api_key": "none", "max_retries": 0, "timeout": CALL_S}


class Asker:
    """A client of each kind, kept for all questions: to make one takes longer than a short answer."""

    def __init__(self, gateway: LocalGateway) -> None:
        self.sync = OpenAI(**options(gateway))
        self._async = AsyncOpenAI(**options(gateway))
        self._runner = asyncio.Runner()

    def __call__(self, endpoint: Endpoint, way: Way = "sync", **fields: Any) -> Answer:
        """Model `chat` unless `fields` names another; those that are not OpenAI's go into `extra_body`."""
        fields = {"model": "chat", **fields}
        if "stream" in way:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if way.startswith("async"):
            return self._runner.run(self._ask_async(endpoint, fields))
        answer = _creator(self.sync, endpoint)(**fields)
        return whole([answer] if isinstance(answer, ChatCompletion | Completion) else answer)

    def close(self) -> None:
        self.sync.close()
        self._runner.run(self._async.close())
        self._runner.close()

    async def _ask_async(self, endpoint: Endpoint, fields: dict[str, Any]) -> Answer:
        answer = await _creator(self._async, endpoint)(**fields)
        return whole([answer] if isinstance(answer, ChatCompletion | Completion) else [part async for part in answer])


def _creator(client: Any, endpoint: Endpoint) -> Any:
    return client.chat.completions.create if endpoint == "chat" else client.completions.create


def _text(part: Any, choice: Any) -> str:
    if isinstance(part, Completion):
        return str(choice.text)
    message = choice.delta if isinstance(part, ChatCompletionChunk) else choice.message
    return str(message.content or "")
