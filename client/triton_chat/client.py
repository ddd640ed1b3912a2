"""The SDK: `ChatClient` for threads, `AsyncChatClient` for asyncio. Both offer the same calls.

    with ChatClient("localhost:8001") as client:
        for event in client.stream("Why is the sky blue?", max_tokens=64):
            print(event.text, end="")

Source: KServe predict protocol v2 over gRPC, by the stub that tritonclient carries.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from triton_chat import wire
from triton_chat.channel import DEFAULT_URL, Target, channel_options, parse_url
from triton_chat.errors import ModelNotFoundError, ServerUnavailableError, StreamTimeoutError, from_status
from triton_chat.limits import WaitLimit, Watchdog
from triton_chat.streams import AsyncChatStream, ChatStream, Collector
from triton_chat.types import (
    Call,
    CallOptions,
    ChatEvent,
    ChatRequest,
    ChatResult,
    Messages,
    ModelInfo,
    SamplingParams,
    ServerInfo,
    Timeouts,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

Conversations = Sequence[Messages]

_READY = "READY"


class _Base:
    """What does not differ between threads and asyncio: addresses, limits, requests and the reading of answers."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        grpc_status: bool = False,
    ) -> None:
        """Nothing is connected yet.

        Args:
            url: `host:port`, `grpc://host:port`, or `grpcs://host:port` for TLS (roots: gRPC's
                `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`).
            timeouts: limits in seconds; single calls may override some.
            headers: gRPC metadata of every call, such as what a proxy asks for.
            grpc_status: ask the server to end failed streams with a gRPC status, see `wire.STATUS_METADATA`.

        Raises:
            InvalidRequestError: the address cannot be one.
        """
        self.target: Target = parse_url(url)
        self.timeouts = timeouts or Timeouts()
        self._metadata = tuple((name.lower(), value) for name, value in (headers or {}).items())
        self._stream_metadata = self._metadata + (wire.STATUS_METADATA if grpc_status else ())

    def _channel_arguments(self) -> list[tuple[str, int]]:
        return channel_options(self.target, self.timeouts.connect)

    def _limit(self, call: Call, cancel: Any) -> WaitLimit:
        idle = self.timeouts.idle if call.idle_timeout is None else call.idle_timeout
        return WaitLimit(self.timeouts.first_token, idle, cancel)

    def _total(self, call: Call) -> float | None:
        return self.timeouts.total if call.timeout is None else call.timeout

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Map gRPC's errors to this package's."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_status(error.code().name, error.details() or "", self.target.address) from error


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


def _server_info(metadata: pb.ServerMetadataResponse, live: bool, ready: bool) -> ServerInfo:
    return ServerInfo(metadata.name, metadata.version, tuple(metadata.extensions), live, ready)


def _model_info(entry: Any, ready: bool) -> ModelInfo:
    return ModelInfo(entry.name, entry.version, entry.state, entry.reason, ready)


def _ready_request(entry: Any) -> pb.ModelReadyRequest:
    return pb.ModelReadyRequest(name=entry.name, version=entry.version)


class ChatClient(_Base):
    """Chat with a tritonserver. May be shared by threads; each call is an RPC of its own over one connection."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        grpc_status: bool = False,
    ) -> None:
        """See `_Base.__init__`."""
        super().__init__(url, timeouts=timeouts, headers=headers, grpc_status=grpc_status)
        options = self._channel_arguments()
        self._channel = (
            grpc.secure_channel(self.target.address, grpc.ssl_channel_credentials(), options=options)
            if self.target.tls
            else grpc.insecure_channel(self.target.address, options=options)
        )
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._watchdog = Watchdog()

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> ChatStream:
        """Send a request; its events come as the server makes them.

        Raises:
            InvalidRequestError: what is wrong can be seen here already. All else is raised while iterating.
        """
        call = _new_call(messages, options)
        request = wire.infer_request(call)
        with self._errors():
            rpc = self._stub.ModelStreamInfer(
                iter((request,)), metadata=self._stream_metadata, timeout=self._total(call)
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
        with self._errors():
            future = self._stub.ModelInfer.future(request, metadata=self._metadata, timeout=limit)
            try:
                response = future.result()
            finally:
                future.cancel()  # does nothing once it is done
        duration_s = time.perf_counter() - started
        return [_result(event, duration_s) for event in wire.decode_rows(response)]

    def is_live(self) -> bool:
        """Whether a server process answers. An unreachable server is not live; this never raises for that."""
        try:
            return bool(self._control("ServerLive", pb.ServerLiveRequest()).live)
        except (ServerUnavailableError, StreamTimeoutError):
            return False

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the server is ready, and with it `model` if one is named. An unreachable server is not."""
        try:
            if model is not None:
                return bool(self._control("ModelReady", pb.ModelReadyRequest(name=model)).ready)
            return bool(self._control("ServerReady", pb.ServerReadyRequest()).ready)
        except (ServerUnavailableError, StreamTimeoutError, ModelNotFoundError):
            return False

    def server_metadata(self) -> ServerInfo:
        """Name, version and health of the server.

        Raises:
            TritonChatError: it cannot be asked.
        """
        metadata = self._control("ServerMetadata", pb.ServerMetadataRequest())
        return _server_info(metadata, self.is_live(), self.is_ready())

    def models(self) -> list[ModelInfo]:
        """The models in the server's repository; `ready` is asked of each, since a loaded model may not be.

        Raises:
            TritonChatError: the server cannot be asked.
        """
        index = self._control("RepositoryIndex", pb.RepositoryIndexRequest()).models
        return [_model_info(entry, self._model_ready(entry)) for entry in index]

    def _model_ready(self, entry: Any) -> bool:
        return entry.state == _READY and bool(self._control("ModelReady", _ready_request(entry)).ready)

    def _control(self, method: str, request: Any) -> Any:
        with self._errors():
            return getattr(self._stub, method)(request, metadata=self._metadata, timeout=self.timeouts.control)

    def close(self) -> None:
        """Close the connection; what is still running is cancelled."""
        self._channel.close()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncChatClient(_Base):
    """Chat with a tritonserver from asyncio. The connection belongs to the event loop of the first call."""

    _channel: grpc.aio.Channel | None = None

    def stream(self, messages: Messages | None = None, **options: Unpack[CallOptions]) -> AsyncChatStream:
        """Send a request; its events come as the server makes them. Call it where an event loop runs.

        Raises:
            InvalidRequestError: what is wrong can be seen here already. All else is raised while iterating.
        """
        call = _new_call(messages, options)
        request = wire.infer_request(call)
        rpc = self._stub.ModelStreamInfer(iter((request,)), metadata=self._stream_metadata, timeout=self._total(call))
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
        with self._errors():
            response = await self._stub.ModelInfer(request, metadata=self._metadata, timeout=limit)
        duration_s = time.perf_counter() - started
        return [_result(event, duration_s) for event in wire.decode_rows(response)]

    async def is_live(self) -> bool:
        """Whether a server process answers. An unreachable server is not live; this never raises for that."""
        try:
            return bool((await self._control("ServerLive", pb.ServerLiveRequest())).live)
        except (ServerUnavailableError, StreamTimeoutError):
            return False

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the server is ready, and with it `model` if one is named. An unreachable server is not."""
        try:
            if model is not None:
                return bool((await self._control("ModelReady", pb.ModelReadyRequest(name=model))).ready)
            return bool((await self._control("ServerReady", pb.ServerReadyRequest())).ready)
        except (ServerUnavailableError, StreamTimeoutError, ModelNotFoundError):
            return False

    async def server_metadata(self) -> ServerInfo:
        """Name, version and health of the server.

        Raises:
            TritonChatError: it cannot be asked.
        """
        metadata = await self._control("ServerMetadata", pb.ServerMetadataRequest())
        return _server_info(metadata, await self.is_live(), await self.is_ready())

    async def models(self) -> list[ModelInfo]:
        """The models in the server's repository; `ready` is asked of each, since a loaded model may not be.

        Raises:
            TritonChatError: the server cannot be asked.
        """
        index = (await self._control("RepositoryIndex", pb.RepositoryIndexRequest())).models
        return [_model_info(entry, await self._model_ready(entry)) for entry in index]

    async def _model_ready(self, entry: Any) -> bool:
        return entry.state == _READY and bool((await self._control("ModelReady", _ready_request(entry))).ready)

    async def _control(self, method: str, request: Any) -> Any:
        with self._errors():
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=self.timeouts.control)

    @property
    def _stub(self) -> Any:
        if self._channel is None:
            options = self._channel_arguments()
            self._channel = (
                grpc.aio.secure_channel(self.target.address, grpc.ssl_channel_credentials(), options=options)
                if self.target.tls
                else grpc.aio.insecure_channel(self.target.address, options=options)
            )
            self._made_stub = GRPCInferenceServiceStub(self._channel)
        return self._made_stub

    async def close(self) -> None:
        """Close the connection; what is still running is cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncChatClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
