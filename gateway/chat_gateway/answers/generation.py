"""The answers to one request. Each choice is a stream of the engine; all of them end together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final

from openai.types import CompletionUsage
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails

from chat_gateway.errors import ApiError, renamed
from chat_gateway.schemas.common import SEEDS
from chat_gateway.upstream.server import Server
from chat_gateway.upstream.triton import Upstream
from triton_chat.client import AsyncChatClient
from triton_chat.collector import Collector
from triton_chat.errors import InvalidRequestError, RequestCancelledError
from triton_chat.streams import AsyncChatStream
from triton_chat.types import ChatEvent, ChatOptions, ChatResult, Messages, SamplingParams

MAX_WAITING: Final = 250_000
"""About the characters of an answer that may wait for a caller who reads more slowly than the model writes. Beyond
that nothing more is read from Triton, beside one event of each choice."""

_NOTHING: Final = ChatEvent("")
_LOGPROB_SIZE: Final = 100
"""About the characters of one log-probability in an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, in exactly one of its three forms."""

    messages: Messages | None = None
    text: str | None = None
    token_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`n` answers to each prompt. Choice `i` of prompt `p` has the index `p * n + i` and the seed `seed + i`.

    Args:
        model: Triton's name of it.
        adapter: of the model.
        chat: for prompts that are messages.
        request_id: of the HTTP request; the engine's requests are named after it.
        echo: answers begin with their prompt.
        headers: gRPC metadata, for tracing.
        names: the engine's names of fields, to those by which the caller gave them; for errors.
    """

    model: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    adapter: str | None = None
    n: int = 1
    request_id: str = ""
    chat: ChatOptions = field(default_factory=ChatOptions)
    echo: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.prompts) * self.n

    def open(self, client: AsyncChatClient, index: int) -> AsyncChatStream:
        """Begins the choice `index`."""
        prompt = self.prompts[index // self.n]
        return client.stream(
            prompt.messages,
            prompt=prompt.text,
            prompt_token_ids=prompt.token_ids,
            **self.chat,
            model=self.model,
            adapter=self.adapter,
            sampling=self._sampling(index % self.n),
            exclude_input_in_output=not self.echo,
            request_id=f"{self.request_id}-{index}",
            headers=self.headers,
        )

    def renamed(self, error: InvalidRequestError, index: int) -> InvalidRequestError:
        """An error of the choice `index` in the caller's own words."""
        prompt = f"prompt[{index // self.n}]" if len(self.prompts) > 1 else "prompt"
        if len(self.prompts) > 1 and error.field is None:
            return error.placed(field=prompt)
        return renamed(error, {name: prompt if here == "prompt" else here for name, here in self.names.items()})

    def _sampling(self, choice: int) -> SamplingParams:
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) % SEEDS)


class Generation:
    """The choices of an order as they come in, while its `async with` block lasts; leaving that cancels the rest.

    The first choice of each prompt goes ahead. The others begin with its first event, when the prompt is in the prefix
    cache. A choice whose server goes away before its first event is begun anew. What says no more than that the request
    waits is no event.
    """

    def __init__(self, upstream: Upstream, order: Order) -> None:
        self._upstream = upstream
        self._order = order
        self._latest = [_NOTHING] * order.size
        self._pending: dict[int, ChatEvent] = {}
        self._size = 0
        """Of what is pending, see `MAX_WAITING`."""
        self._room = asyncio.Event()
        self._room.set()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._num_complete = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Generation:
        """Raises ApiError if too many are waiting for the model."""
        self._upstream.admit(self._order.model, self._order.adapter)
        for index in range(0, self._order.size, self._order.n):
            self._begin(index)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def complete(self) -> bool:
        """Whether all choices have ended well, and all their events were taken."""
        return self._num_complete == self._order.size and not self._pending

    async def pending(self) -> dict[int, ChatEvent]:
        """What has come since the last call, as one event for each choice that has any; waits for some.

        Nothing if all is complete, or if `nudge` was called while nothing had come.

        Raises:
            TritonChatError: one choice has failed; no choice goes on.
        """
        if not self._pending and self._failure is None and not self.complete:
            self._changed.clear()
            await self._changed.wait()
        if not self._pending and self._failure is not None:
            raise self._failure
        pending, self._pending, self._size = self._pending, {}, 0
        self._room.set()
        return pending

    def nudge(self) -> None:
        """Ends the wait in `pending`."""
        self._changed.set()

    async def results(self) -> list[ChatResult]:
        """All answers, by index, for those who have no use for single events.

        Raises:
            TritonChatError: one choice has failed.
        """
        collectors = [Collector() for _ in self._latest]
        async with self:
            while not self.complete:
                for index, event in (await self.pending()).items():
                    collectors[index].add(event)
        return [collector.result() for collector in collectors]

    def usage(self) -> CompletionUsage:
        """Tokens so far. A prompt counts once, however many choices it has, and so does what of it was cached."""
        firsts = self._latest[:: self._order.n]
        prompt_tokens = sum(event.num_input_tokens for event in firsts)
        completion_tokens = sum(event.num_output_tokens for event in self._latest)
        return CompletionUsage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=sum(event.num_reasoning_tokens for event in self._latest)
            ),
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(event.num_cached_tokens for event in firsts)),
        )

    def _begin(self, index: int) -> None:
        task = asyncio.create_task(self._read(index))
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    async def _read(self, index: int) -> None:
        try:
            await self._upstream.ask(
                self._order.model,
                lambda server: self._receive(index, server),
                self._order.request_id,
                unless=lambda: self._latest[index] is not _NOTHING,
                adapter=self._order.adapter,
            )
        except InvalidRequestError as error:
            raise self._order.renamed(error, index) from error

    async def _receive(self, index: int, server: Server) -> None:
        followers = [] if index % self._order.n else list(range(index + 1, index + self._order.n))
        with server.backlogs.waiting(self._order.model) as ticket:
            async with self._order.open(server.client, index) as stream:
                async for event in stream:
                    server.heard()
                    if _says_nothing(event, self._latest[index]):
                        continue
                    ticket.first_token()
                    self._add(index, event)
                    for follower in followers:
                        self._begin(follower)
                    followers.clear()
                    await self._room.wait()

    def _add(self, index: int, event: ChatEvent) -> None:
        before = self._pending.get(index)
        self._pending[index] = event if before is None else before.joined(event)
        self._latest[index] = event
        self._size += _size(event)
        if self._size > MAX_WAITING:
            self._room.clear()
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        failure = RequestCancelledError("the answer was cancelled") if task.cancelled() else task.exception()
        if failure is None:
            self._num_complete += 1
        else:
            self._failure = self._failure or failure
        if failure is not None or self.complete:
            self._changed.set()


def _says_nothing(event: ChatEvent, latest: ChatEvent) -> bool:
    """Whether it has neither a token nor anything to show: Triton says so that the request waits and is alive."""
    if event.text or event.finish_reason or event.num_output_tokens != latest.num_output_tokens:
        return False
    told = (event.token_ids, event.logprobs, event.prompt_token_ids, event.prompt_logprobs)
    return not (event.reasoning or event.tool_calls or any(told))


def _size(event: ChatEvent) -> int:
    """About its characters in an answer."""
    size = len(event.text) + len(event.reasoning)
    if event.tool_calls:
        size += sum(len(delta.arguments) for delta in event.tool_calls)
    if event.logprobs or event.prompt_logprobs:
        size += _LOGPROB_SIZE * sum(1 + len(token.top_logprobs) for token in event.logprobs)
        size += _LOGPROB_SIZE * sum(1 + len(token.top_logprobs) for token in event.prompt_logprobs)
    return size


def check_size(num_prompts: int, n: int, limit: int) -> None:
    """Raises ApiError if a request asks for more than `limit` choices."""
    if n > limit:
        raise ApiError(400, f"n: {n} given; at most {limit} are allowed", param="n", code="invalid_value")
    if num_prompts * n > limit:
        message = (
            f"prompt: {num_prompts} prompts with {n} answers each; at most {limit} answers are allowed in one request"
        )
        raise ApiError(400, message, param="prompt", code="invalid_value")
