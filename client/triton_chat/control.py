"""A connection to a tritonserver, and the calls beside chatting: health, metadata, the model list, the tokenizer.

Base classes of the two clients; see `triton_chat.client`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from triton_chat import tokenizer, wire
from triton_chat.channel import DEFAULT_URL, ChannelOptions, Target, channel_options, parse_url
from triton_chat.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    ServerUnavailableError,
    StreamTimeoutError,
    from_status,
)
from triton_chat.kinds import READY, Kinds
from triton_chat.limits import WaitLimit, Watchdog
from triton_chat.types import Call, Messages, ModelInfo, ModelKind, ServerInfo, Timeouts, TokenizerInfo, Tokens

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from triton_chat.tokenizer import TokenizeOptions

# Why a model's config may not be had: unloaded meanwhile, or a server without that extension.
_NO_CONFIG = (ModelNotFoundError, ServerUnavailableError, InvalidRequestError)


class Connection:
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
                `GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`). Calls are spread over all addresses that the host has.
            timeouts: limits in seconds; single calls may override some.
            headers: gRPC metadata of every call, such as what a proxy asks for.
            grpc_status: ask the server to end failed streams with a gRPC status, see `wire.STATUS_METADATA`.

        Raises:
            InvalidRequestError: the address cannot be one.
        """
        self.target: Target = parse_url(url)
        self.timeouts = timeouts or Timeouts()
        self._headers = _lowered(headers)
        self._stream_headers = wire.STATUS_METADATA if grpc_status else ()
        self._kinds = Kinds()

    def _metadata(self, headers: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
        """gRPC metadata of a call with headers of its own, which win."""
        return tuple({**self._headers, **_lowered(headers)}.items())

    def _stream_metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        return self._metadata(call.headers) + self._stream_headers

    def _channel_arguments(self) -> ChannelOptions:
        return channel_options(self.target, self.timeouts.connect)

    def _limit(self, call: Call, cancel: Any) -> WaitLimit:
        idle = self.timeouts.idle if call.idle_timeout is None else call.idle_timeout
        return WaitLimit(self.timeouts.first_token, idle, cancel)

    def _total(self, call: Call) -> float | None:
        return self.timeouts.total if call.timeout is None else call.timeout

    def _control_limit(self, timeout: float | None) -> float:
        return self.timeouts.control if timeout is None else timeout

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Map gRPC's errors to this package's."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_status(error.code().name, error.details() or "", self.target.address) from error


def _lowered(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def _server_info(metadata: pb.ServerMetadataResponse, live: bool, ready: bool) -> ServerInfo:
    return ServerInfo(metadata.name, metadata.version, tuple(metadata.extensions), live, ready)


def _model_info(entry: Any, ready: bool, kind: ModelKind) -> ModelInfo:
    return ModelInfo(entry.name, entry.version, entry.state, entry.reason, ready, kind)


def _ready_request(entry: Any) -> pb.ModelReadyRequest:
    return pb.ModelReadyRequest(name=entry.name, version=entry.version)


def _config_request(entry: Any) -> pb.ModelConfigRequest:
    return pb.ModelConfigRequest(name=entry.name, version=entry.version)


class SyncConnection(Connection):
    """For threads."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        grpc_status: bool = False,
    ) -> None:
        """See `Connection.__init__`."""
        super().__init__(url, timeouts=timeouts, headers=headers, grpc_status=grpc_status)
        options = self._channel_arguments()
        self._channel = (
            grpc.secure_channel(self.target.address, grpc.ssl_channel_credentials(), options=options)
            if self.target.tls
            else grpc.insecure_channel(self.target.address, options=options)
        )
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._watchdog = Watchdog()

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

        What kind a model is, is asked once for as long as it is loaded.

        Raises:
            TritonChatError: the server cannot be asked.
        """
        index = self._control("RepositoryIndex", pb.RepositoryIndexRequest()).models
        return [_model_info(entry, self._model_ready(entry), self._model_kind(entry)) for entry in index]

    def tokenize(
        self,
        messages: Messages | None = None,
        *,
        text: str | None = None,
        model: str = "chat",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[TokenizeOptions],
    ) -> Tokens:
        """The token ids of a conversation, by the chat template of `model`, or of a text.

        Args:
            options: see `TokenizeOptions`.

        Raises:
            TritonChatError: how the request failed.
        """
        request = tokenizer.encode_request(model, messages, text, options)
        return tokenizer.read(self._infer(request, self._control_limit(timeout), headers), options)

    def detokenize(
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
        request = tokenizer.decode_request(model, token_ids)
        return tokenizer.read(self._infer(request, self._control_limit(timeout), headers))

    def tokenizer_info(
        self, model: str = "chat", *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> TokenizerInfo:
        """What the checkpoint of a chat model says about its texts.

        Raises:
            TritonChatError: how the request failed.
        """
        request = tokenizer.info_request(model)
        return tokenizer.read_info(self._infer(request, self._control_limit(timeout), headers))

    def _model_ready(self, entry: Any) -> bool:
        return entry.state == READY and bool(self._control("ModelReady", _ready_request(entry)).ready)

    def _model_kind(self, entry: Any) -> ModelKind:
        if self._kinds.is_unknown(entry):
            with suppress(*_NO_CONFIG):
                self._kinds.learn(entry, self._control("ModelConfig", _config_request(entry)).config)
        return self._kinds[entry]

    def _infer(
        self, request: pb.ModelInferRequest, timeout: float | None, headers: Mapping[str, str] | None = None
    ) -> pb.ModelInferResponse:
        """One request, one response; an exception while waiting (Ctrl-C too) cancels it. Raises TritonChatError."""
        with self._errors():
            future = self._stub.ModelInfer.future(request, metadata=self._metadata(headers), timeout=timeout)
            try:
                return future.result()
            finally:
                future.cancel()  # does nothing once it is done

    def _control(self, method: str, request: Any) -> Any:
        with self._errors():
            return getattr(self._stub, method)(request, metadata=self._metadata(), timeout=self.timeouts.control)

    def close(self) -> None:
        """Close the connection; what is still running is cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncConnection(Connection):
    """For asyncio."""

    _channel: grpc.aio.Channel | None = None

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

        What kind a model is, is asked once for as long as it is loaded.

        Raises:
            TritonChatError: the server cannot be asked.
        """
        index = (await self._control("RepositoryIndex", pb.RepositoryIndexRequest())).models
        return [_model_info(entry, await self._model_ready(entry), await self._model_kind(entry)) for entry in index]

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
        """The token ids of a conversation or of a text; see `SyncConnection.tokenize`.

        Raises:
            TritonChatError: how the request failed.
        """
        request = tokenizer.encode_request(model, messages, text, options)
        return tokenizer.read(await self._infer(request, self._control_limit(timeout), headers), options)

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
        request = tokenizer.decode_request(model, token_ids)
        return tokenizer.read(await self._infer(request, self._control_limit(timeout), headers))

    async def tokenizer_info(
        self, model: str = "chat", *, timeout: float | None = None, headers: Mapping[str, str] | None = None
    ) -> TokenizerInfo:
        """What the checkpoint of a chat model says about its texts.

        Raises:
            TritonChatError: how the request failed.
        """
        request = tokenizer.info_request(model)
        return tokenizer.read_info(await self._infer(request, self._control_limit(timeout), headers))

    async def _model_ready(self, entry: Any) -> bool:
        return entry.state == READY and bool((await self._control("ModelReady", _ready_request(entry))).ready)

    async def _model_kind(self, entry: Any) -> ModelKind:
        if self._kinds.is_unknown(entry):
            with suppress(*_NO_CONFIG):
                self._kinds.learn(entry, (await self._control("ModelConfig", _config_request(entry))).config)
        return self._kinds[entry]

    async def _infer(
        self, request: pb.ModelInferRequest, timeout: float | None, headers: Mapping[str, str] | None = None
    ) -> pb.ModelInferResponse:
        """One request, one response. Raises TritonChatError."""
        with self._errors():
            return await self._stub.ModelInfer(request, metadata=self._metadata(headers), timeout=timeout)

    async def _control(self, method: str, request: Any) -> Any:
        with self._errors():
            return await getattr(self._stub, method)(request, metadata=self._metadata(), timeout=self.timeouts.control)

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
