"""Send any call: `Sender` from threads, `AsyncSender` from asyncio. Base classes of the two clients.

They differ in how they wait, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from triton_chat.channel import DEFAULT_URL, Target
from triton_chat.connection import Connection
from triton_chat.errors import TritonChatError
from triton_chat.streams import AsyncChatStream, ChatStream
from triton_chat.timers import Watchdog
from triton_chat.types import Timeouts

if TYPE_CHECKING:
    from typing_extensions import Self

    from triton_chat.rpc import Rpc, Rpcs, StreamRpc

T = TypeVar("T")


class Sender(Connection):
    """For threads."""

    def __init__(
        self,
        url: str | Target = DEFAULT_URL,
        *,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        grpc_status: bool = False,
    ) -> None:
        """See `Connection.__init__`."""
        super().__init__(url, timeouts=timeouts, headers=headers, grpc_status=grpc_status)
        self._channel = self._open_channel(grpc)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._watchdog = Watchdog()

    def _run(self, call: Rpcs[T], headers: Mapping[str, str] | None = None) -> T:
        """What a call comes to. Raises TritonChatError."""
        rpcs = iter(call)
        try:
            rpc = next(rpcs)
            while True:
                try:
                    response = self._send(rpc, headers)
                except TritonChatError as error:  # noqa: PERF203 - an RPC takes longer
                    rpc = rpcs.throw(error)
                else:
                    rpc = rpcs.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, rpc: Rpc[Any], headers: Mapping[str, str] | None) -> Any:
        """The response. An exception while waiting (Ctrl-C too) cancels the request. Raises TritonChatError."""
        with self._errors():
            future = getattr(self._stub, rpc.method).future(rpc.request, **self._arguments(rpc, headers))
            try:
                return future.result()
            finally:
                future.cancel()  # does nothing once it is done

    def _open(self, rpc: StreamRpc) -> ChatStream:
        """Send the request of a stream."""
        with self._errors():
            responses = self._stub.ModelStreamInfer(iter((rpc.request,)), **self._stream_arguments(rpc))
        return ChatStream(responses, rpc, self.target.address, self._watchdog)

    def close(self) -> None:
        """Close the connection; what is still running is cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncSender(Connection):
    """For asyncio."""

    _channel: grpc.aio.Channel | None = None

    async def _run(self, call: Rpcs[T], headers: Mapping[str, str] | None = None) -> T:
        """What a call comes to. Raises TritonChatError."""
        rpcs = iter(call)
        try:
            rpc = next(rpcs)
            while True:
                try:
                    response = await self._send(rpc, headers)
                except TritonChatError as error:  # noqa: PERF203 - an RPC takes longer
                    rpc = rpcs.throw(error)
                else:
                    rpc = rpcs.send(response)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, rpc: Rpc[Any], headers: Mapping[str, str] | None) -> Any:
        """The response. Cancelling the task that waits cancels the request. Raises TritonChatError."""
        with self._errors():
            return await getattr(self._stub, rpc.method)(rpc.request, **self._arguments(rpc, headers))

    def _open(self, rpc: StreamRpc) -> AsyncChatStream:
        """Send the request of a stream."""
        with self._errors():
            responses = self._stub.ModelStreamInfer(iter((rpc.request,)), **self._stream_arguments(rpc))
        return AsyncChatStream(responses, rpc, self.target.address)

    @cached_property
    def _stub(self) -> GRPCInferenceServiceStub:
        """Made by the first call, since its channel belongs to the event loop that runs then."""
        self._channel = self._open_channel(grpc.aio)
        return GRPCInferenceServiceStub(self._channel)

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
