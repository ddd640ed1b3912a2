"""The client for asyncio: the calls of `ChatClient`, to be awaited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from triton_chat import chat, control, embeddings, tokenizer
from triton_chat.chat import Conversations
from triton_chat.collector import Collector
from triton_chat.embeddings import EmbeddingResult
from triton_chat.rounds import Rounds, ToolRun
from triton_chat.senders import AsyncSender
from triton_chat.streams import AsyncChatStream
from triton_chat.types import (
    CallOptions,
    ChatOptions,
    ChatResult,
    Messages,
    ModelInfo,
    SamplingParams,
    ServerInfo,
    TokenizerInfo,
    Tokens,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from triton_chat.embeddings import EmbedOptions
    from triton_chat.rounds import Functions
    from triton_chat.tokenizer import TokenizeOptions


class AsyncChatClient(AsyncSender):
    """Chat with a tritonserver from asyncio. The connection belongs to the event loop of the first call."""

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> AsyncChatStream:
        """Send a request; its events come as the server makes them. Call it where an event loop runs.

        Raises:
            InvalidRequestError: what is wrong can be seen here already. All else is raised while iterating.
        """
        return self._open(chat.stream(messages, options, self.timeouts))

    async def generate(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> ChatResult:
        """The whole answer.

        Raises:
            TritonChatError: how the request failed.
        """
        collector = Collector()
        async with self.stream(messages, **options) as stream:
            async for event in stream:
                collector.add(event)
        return collector.result()

    async def run_tools(
        self, messages: Messages, functions: Functions, *, max_rounds: int = 10, **options: Unpack[CallOptions]
    ) -> ToolRun:
        """Answer with the help of Python functions; see `ChatClient.run_tools`.

        The calls of an answer run at the same time, those of functions that are no coroutines in threads.

        Raises:
            TritonChatError: how a request failed, or why a function cannot be a tool.
        """
        rounds = Rounds(messages, functions, options, max_rounds)
        while not rounds.over:
            result = await self.generate(rounds.messages, **rounds.options)
            await rounds.answer_all(result)
        return rounds.run

    async def generate_batch(
        self,
        conversations: Conversations | None = None,
        *,
        prompts: Sequence[str] | None = None,
        model: str = "chat_unary",
        adapter: str | None = None,
        sampling: SamplingParams | None = None,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[ChatResult]:
        """Answers to several conversations, or raw prompts, in one request; their order is kept.

        Args:
            conversations: one that is a `ChatRequest` has parameters of its own, tools too.
            adapter: of the other rows.
            sampling: of the other rows.
            options: of the other conversations; see `ChatOptions`.

        Raises:
            TritonChatError: how the request failed.
        """
        limit = self._batch_limit(timeout)
        return await self._run(chat.batch(conversations, prompts, model, sampling, limit, options, adapter))

    async def embed(
        self,
        inputs: embeddings.Inputs,
        *,
        model: str = "embeddings",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingResult:
        """The vectors of texts; see `ChatClient.embed`.

        Raises:
            TritonChatError: how the first request that failed did; a row of `inputs` is named by its index.
        """
        return await self._run(embeddings.embed(inputs, model, options, self._batch_limit(timeout)), headers)

    async def is_live(self) -> bool:
        """Whether a server process answers. An unreachable server is not live; this never raises for that."""
        return await self._run(control.is_live())

    async def check_live(self) -> None:
        """Returns if a server process says that it is live.

        Raises:
            ServerSilentError: it does not even refuse a connection.
            ServerUnavailableError: it cannot be reached, or is not live.
            StreamTimeoutError: it does not answer in time.
        """
        await self._run(control.check_live())

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the server is ready, and with it `model` if one is named. An unreachable server is not."""
        return await self._run(control.is_ready(model))

    async def server_metadata(self) -> ServerInfo:
        """Name, version and health of the server.

        Raises:
            TritonChatError: it cannot be asked.
        """
        return await self._run(control.server_metadata())

    async def models(self) -> list[ModelInfo]:
        """The models in the server's repository; `ready` is asked of each, since a loaded model may not be.

        What kind a model is, is asked once for as long as it is loaded.

        Raises:
            TritonChatError: the server cannot be asked.
        """
        return await self._run(control.models(self._kinds))

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
        """The token ids of a conversation or of a text; see `ChatClient.tokenize`.

        Raises:
            TritonChatError: how the request failed.
        """
        return await self._run(tokenizer.tokenize(model, messages, text, options, timeout), headers)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Tokens:
        """The text of token ids, special tokens included.

        Raises:
            TritonChatError: how the request failed.
        """
        return await self._run(tokenizer.detokenize(model, token_ids, timeout), headers)

    async def tokenizer_info(
        self, model: str = "chat", *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> TokenizerInfo:
        """What the checkpoint of a chat model says about its texts.

        Raises:
            TritonChatError: how the request failed.
        """
        return await self._run(tokenizer.tokenizer_info(model, timeout), headers)
