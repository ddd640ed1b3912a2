"""One answer as it comes in.

Each stream is one `ModelStreamInfer` RPC with one request, so that cancelling it cancels exactly that request on the
server, and its gRPC status is the request's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from triton_chat import wire
from triton_chat.errors import EngineError, RequestCancelledError, TritonChatError
from triton_chat.limits import WaitLimit
from triton_chat.rpc import StreamRpc, failure
from triton_chat.timers import LoopTimer, Timer, Watchdog, WatchedTimer
from triton_chat.types import ChatEvent

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2 as pb

_CANCELLED = "the request was cancelled before the answer was complete"
_CUT_SHORT = "the stream ended before the answer was complete"


class _Stream:
    """What the two kinds of stream share: the state of one RPC, what its responses mean, and what its end means."""

    _timer: Timer
    """Counts while the reader waits."""

    def __init__(self, responses: Any, rpc: StreamRpc, address: str) -> None:
        """`responses` is the RPC as gRPC has it."""
        self.request_id: str = rpc.request.id
        self._responses = responses
        self._limit = WaitLimit(rpc.first_token_s, rpc.idle_s, responses.cancel)
        self._address = address
        self._complete = False
        self._over = False
        self._error: TritonChatError | None = None

    def _event(self, response: pb.ModelStreamInferResponse) -> ChatEvent | None:
        """The event in a response, if it has one.

        An error that the server reports is kept until the server has ended the stream, which it does next: tritonserver
        2.51 may never let go of a request whose stream is cancelled in between, and then of its model.
        """
        try:
            event, final = wire.read_stream_response(response)
        except TritonChatError as error:
            self._limit.end()
            if not response.error_message:
                raise
            self._error = self._error or error
            return None
        self._limit.end(is_token=event is None or not event.is_waiting)
        self._complete = self._complete or final
        return event

    def _end(self) -> None:
        """The server has ended the stream. Raises TritonChatError unless the answer is complete."""
        was_over = self._over
        self._stop()
        if self._error is not None:
            raise self._error
        if not (self._complete or was_over):
            raise EngineError(_CUT_SHORT)

    def _failure(self, error: grpc.RpcError) -> TritonChatError:
        """Why the RPC has failed: what the server reported before, or the reader's limit, says more than its status."""
        if self._error is not None:
            return self._error
        if self._limit.expired:
            return self._limit.error()
        return failure(error, self._address)

    def _stop(self) -> None:
        """Nothing more is read. The request is cancelled unless it is complete. Idempotent."""
        self._over = True
        self._timer.stop()
        self._responses.cancel()


class ChatStream(_Stream, Iterator[ChatEvent]):
    """Events of one answer.

    Closing it, leaving its `with` block, dropping it or an exception while waiting (Ctrl-C too) cancels the request on
    the server. `close` may be called from another thread; the reader then gets a `RequestCancelledError`.
    """

    def __init__(self, responses: Any, rpc: StreamRpc, address: str, watchdog: Watchdog) -> None:
        super().__init__(responses, rpc, address)
        self._timer = WatchedTimer(watchdog, self._limit)

    def __next__(self) -> ChatEvent:
        """The next event.

        Raises:
            TritonChatError: how the request failed; the stream is over then.
        """
        try:
            while not self._over:
                self._timer.begin()
                response = next(self._responses, None)
                if response is None:
                    self._end()
                elif (event := self._event(response)) is not None:
                    return event
        except grpc.RpcError as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def close(self) -> None:
        """Stop here. The request is cancelled unless it is complete. Idempotent."""
        self._stop()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_timer") and not self._over:
            self.close()


class AsyncChatStream(_Stream, AsyncIterator[ChatEvent]):
    """Events of one answer, for asyncio.

    `aclose`, leaving its `async with` block, dropping it, and cancelling the task that waits for it all cancel the
    request on the server.
    """

    def __init__(self, responses: Any, rpc: StreamRpc, address: str) -> None:
        super().__init__(responses, rpc, address)
        self._timer = LoopTimer(self._limit)

    async def __anext__(self) -> ChatEvent:
        """The next event.

        Raises:
            TritonChatError: how the request failed; the stream is over then.
        """
        try:
            while not self._over:
                self._timer.begin()
                response = await self._responses.read()
                if response is grpc.aio.EOF:
                    self._end()
                elif (event := self._event(response)) is not None:
                    return event
        except grpc.RpcError as error:
            self.cancel()
            raise self._failure(error) from error
        except asyncio.CancelledError:
            self._raise_if_ours()
            self.cancel()
            raise
        except BaseException:
            self.cancel()
            raise
        raise StopAsyncIteration

    def _raise_if_ours(self) -> None:
        """grpc.aio raises CancelledError for an RPC that this side cancelled, which is not the task's cancellation."""
        if self._limit.expired:
            self.cancel()
            raise (self._error or self._limit.error()) from None
        if self._over:
            raise RequestCancelledError(_CANCELLED) from None

    def cancel(self) -> None:
        """Stop here. The request is cancelled unless it is complete. Idempotent."""
        self._stop()

    async def aclose(self) -> None:
        """`cancel`, by the name that asynchronous iterators have for it."""
        self.cancel()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_timer") and not self._over:
            with suppress(RuntimeError):  # the event loop may be closed already
                self.cancel()
