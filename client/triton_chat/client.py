"""The SDK: `ChatClient` for threads, `AsyncChatClient` for asyncio. Both offer the same calls.

    with ChatClient("localhost:8001") as client:
        for event in client.stream("Why is the sky blue?", max_tokens=64):
            print(event.text, end="")

Source: KServe predict protocol v2 over gRPC, by the stub that tritonclient carries.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2 as pb

from triton_chat import embeddings, wire
from triton_chat.control import AsyncConnection, SyncConnection
from triton_chat.embeddings import Deadline, EmbeddingResult
from triton_chat.streams import AsyncChatStream, ChatStream, Collector
from triton_chat.types import Call, CallOptions, ChatEvent, ChatRequest, ChatResult, Messages, SamplingParams

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from triton_chat.embeddings import EmbedOptions

Conversations = Sequence[Messages]


def _new_call(messages: Messages | None, options: CallOptions) -> Call:
    call = Call.of(messages, options)
    return call if call.request_id else replace(call, request_id=uuid.uuid4().hex)


def _batch(
    conversations: Conversations | None, prompts: Sequence[str] | None, sampling: SamplingParams, model: str
) -> pb.ModelInferRequest:
    rows = [ChatRequest(messages=messages, sampling=sampling) for messages in conversations or ()]
    rows += [ChatRequest(prompt=prompt, sampling=sampling) for prompt in prompts or ()]
    first = rows[0] if rows else ChatRequest(prompt="")
    return wire.infer_request(Call(request=first, model=model, request_id=uuid.uuid4().hex), rows)


def _result(event: ChatEvent, duration_s: float) -> ChatResult:
    collector = Collector()
    collector.add(event)
    return replace(collector.result(), ttft_s=None, duration_s=duration_s)


class ChatClient(SyncConnection):
    """Chat with a tritonserver. May be shared by threads; each call is an RPC of its own over one connection."""

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> ChatStream:
        """Send a request; its events come as the server makes them.

        Raises:
            InvalidRequestError: what is wrong can be seen here already. All else is raised while iterating.
        """
        call = _new_call(messages, options)
        request = wire.infer_request(call)
        with self._errors():
            rpc = self._stub.ModelStreamInfer(
                iter((request,)), metadata=self._stream_metadata(call), timeout=self._total(call)
            )
        return ChatStream(rpc, self._limit(call, rpc.cancel), self.target.address, call.request_id, self._watchdog)

    def generate(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> ChatResult:
        """The whole answer.

        Raises:
            TritonChatError: how the request failed.
        """
        collector = Collector()
        with self.stream(messages, **options) as stream:
            for event in stream:
                collector.add(event)
        return collector.result()

    def generate_batch(
        self,
        conversations: Conversations | None = None,
        *,
        prompts: Sequence[str] | None = None,
        model: str = "chat_unary",
        sampling: SamplingParams | None = None,
        timeout: float | None = None,
    ) -> list[ChatResult]:
        """Answers to several conversations, or raw prompts, in one request; their order is kept.

        Raises:
            TritonChatError: how the request failed.
        """
        request = _batch(conversations, prompts, sampling or SamplingParams(), model)
        started = time.perf_counter()
        limit = self.timeouts.batch if timeout is None else timeout
        response = self._infer(request, limit)
        duration_s = time.perf_counter() - started
        return [_result(event, duration_s) for event in wire.decode_rows(response)]

    def embed(
        self,
        inputs: embeddings.Inputs,
        *,
        model: str = "embeddings",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingResult:
        """The vectors of texts, in requests of as many rows as the model takes, one after the other.

        Args:
            inputs: texts, or lists of token ids, which are taken as they are.
            timeout: seconds for all of it; by default the client's limit for batches.
            options: see `EmbedOptions`.

        Raises:
            TritonChatError: how the first request that failed did; a row of `inputs` is named by its index.
        """
        deadline = Deadline(self.timeouts.batch if timeout is None else timeout)
        parts = []
        for batch in embeddings.batches(inputs, model, options):
            with batch.errors():
                parts.append(embeddings.read(self._infer(batch.request, deadline.left(), headers)))
        return embeddings.joined(parts)


class AsyncChatClient(AsyncConnection):
    """Chat with a tritonserver from asyncio. The connection belongs to the event loop of the first call."""

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> AsyncChatStream:
        """Send a request; its events come as the server makes them. Call it where an event loop runs.

        Raises:
            InvalidRequestError: what is wrong can be seen here already. All else is raised while iterating.
        """
        call = _new_call(messages, options)
        request = wire.infer_request(call)
        rpc = self._stub.ModelStreamInfer(
            iter((request,)), metadata=self._stream_metadata(call), timeout=self._total(call)
        )
        return AsyncChatStream(rpc, self._limit(call, rpc.cancel), self.target.address, call.request_id)

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

    async def generate_batch(
        self,
        conversations: Conversations | None = None,
        *,
        prompts: Sequence[str] | None = None,
        model: str = "chat_unary",
        sampling: SamplingParams | None = None,
        timeout: float | None = None,
    ) -> list[ChatResult]:
        """Answers to several conversations, or raw prompts, in one request; their order is kept.

        Raises:
            TritonChatError: how the request failed.
        """
        request = _batch(conversations, prompts, sampling or SamplingParams(), model)
        started = time.perf_counter()
        limit = self.timeouts.batch if timeout is None else timeout
        response = await self._infer(request, limit)
        duration_s = time.perf_counter() - started
        return [_result(event, duration_s) for event in wire.decode_rows(response)]

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
        deadline = Deadline(self.timeouts.batch if timeout is None else timeout)
        parts = []
        for batch in embeddings.batches(inputs, model, options):
            with batch.errors():
                parts.append(embeddings.read(await self._infer(batch.request, deadline.left(), headers)))
        return embeddings.joined(parts)
