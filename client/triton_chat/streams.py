"""One answer as it comes in.

Each stream is one `ModelStreamInfer` RPC with one request, so that cancelling it cancels exactly that request on the
server, and its gRPC status is the request's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from triton_chat import wire
from triton_chat.errors import EngineError, RequestCancelledError, TritonChatError, from_status
from triton_chat.limits import LoopTimer, WaitLimit, Watchdog
from triton_chat.pace import Pace
from triton_chat.types import ChatEvent, ChatResult, PromptLogprob, TokenLogprob

_CANCELLED = "the request was cancelled before the answer was complete"
_CUT_SHORT = "the stream ended before the answer was complete"


class Collector:
    """Adds events up to a `ChatResult`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._ttft_s: float | None = None
        self._pace = Pace()
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: list[PromptLogprob] = []
        self._token_ids: list[int] = []
        self._prompt_token_ids: tuple[int, ...] = ()
        self._last = ChatEvent("")

    def add(self, event: ChatEvent) -> None:
        now_s = time.perf_counter() - self._started
        if self._ttft_s is None and (event.text or event.num_output_tokens):
            self._ttft_s = now_s
        self._pace.add(now_s, event.num_output_tokens)
        self._texts.append(event.text)
        self._logprobs.extend(event.logprobs)
        self._prompt_logprobs.extend(event.prompt_logprobs)
        self._token_ids.extend(event.token_ids)
        self._prompt_token_ids += event.prompt_token_ids
        self._last = event

    def result(self) -> ChatResult:
        """What there is so far; its duration ends now."""
        last = self._last
        return ChatResult(
            text="".join(self._texts),
            finish_reason=last.finish_reason,
            num_input_tokens=last.num_input_tokens,
            num_output_tokens=last.num_output_tokens,
            num_cached_tokens=last.num_cached_tokens,
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            token_ids=tuple(self._token_ids),
            prompt_token_ids=self._prompt_token_ids,
            ttft_s=self._ttft_s,
            duration_s=time.perf_counter() - self._started,
            tokens_per_s=self._pace.tokens_per_s,
        )


class _Stream:
    """What the two kinds of stream share: the state of one RPC and the meaning of its end."""

    def __init__(self, call: Any, limit: WaitLimit, address: str, request_id: str) -> None:
        self.request_id = request_id
        self._call = call
        self._limit = limit
        self._address = address
        self._complete = False
        self._over = False
        self._error: TritonChatError | None = None

    def _event(self, response: service_pb2.ModelStreamInferResponse) -> ChatEvent | None:
        """The event in a response, if it has one.

        An error that the server reports is kept until the server has ended the stream, which it does next: tritonserver
        2.51 may never let go of a request whose stream is cancelled in between, and then of its model.
        """
        self._limit.end()
        try:
            event, final = wire.read_stream_response(response)
        except TritonChatError as error:
            if not response.error_message:
                raise
            self._error = self._error or error
            return None
        self._complete = self._complete or final
        return event

    def _failure(self, error: grpc.RpcError) -> TritonChatError:
        if self._error is not None:
            return self._error
        if self._limit.expired:
            return self._limit.error()
        return from_status(error.code().name, error.details() or "", self._address)

    def _check_end(self) -> None:
        """Raises TritonChatError unless the stream has ended well."""
        if self._error is not None:
            raise self._error
        if not self._complete:
            raise EngineError(_CUT_SHORT)


class ChatStream(_Stream, Iterator[ChatEvent]):
    """Events of one answer.

    Closing it, leaving its `with` block, dropping it or an exception while waiting (Ctrl-C too) cancels the request on
    the server. `close` may be called from another thread; the reader then gets a `RequestCancelledError`.
    """

    def __init__(self, call: Any, limit: WaitLimit, address: str, request_id: str, watchdog: Watchdog) -> None:
        super().__init__(call, limit, address, request_id)
        self._watchdog = watchdog
        watchdog.watch(limit)

    def __next__(self) -> ChatEvent:
        """The next event.

        Raises:
            TritonChatError: how the request failed; the stream is over then.
        """
        ended = False
        try:
            while not self._over:
                self._watchdog.begin(self._limit)
                event = self._event(next(self._call))
                if event is not None:
                    return event
        except StopIteration:
            self.close()
            ended = True
        except grpc.RpcError as error:
            self.close()
            raise self._failure(error) from error
        except BaseException:
            self.close()
            raise
        if ended:
            self._check_end()
        raise StopIteration

    def close(self) -> None:
        """Stop here. The request is cancelled unless it is complete. Idempotent."""
        self._over = True
        self._watchdog.forget(self._limit)
        self._call.cancel()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_watchdog") and not self._over:
            self.close()


class AsyncChatStream(_Stream, AsyncIterator[ChatEvent]):
    """Events of one answer, for asyncio.

    `aclose`, leaving its `async with` block, dropping it, and cancelling the task that waits for it all cancel the
    request on the server.
    """

    def __init__(self, call: Any, limit: WaitLimit, address: str, request_id: str) -> None:
        super().__init__(call, limit, address, request_id)
        self._timer = LoopTimer(limit)

    async def __anext__(self) -> ChatEvent:
        """The next event.

        Raises:
            TritonChatError: how the request failed; the stream is over then.
        """
        try:
            while not self._over:
                self._timer.begin()
                response = await self._call.read()
                if response is grpc.aio.EOF:
                    break
                event = self._event(response)
                if event is not None:
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
        was_over = self._over
        self.cancel()
        if not was_over:
            self._check_end()
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
        self._over = True
        self._timer.stop()
        self._call.cancel()

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
