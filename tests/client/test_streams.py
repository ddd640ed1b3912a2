"""How a stream ends, for threads and for asyncio: the same responses come to the same end. No server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.client.fake_server import fail, pb, say
from triton_chat import errors
from triton_chat.rpc import StreamRpc
from triton_chat.streams import AsyncChatStream, ChatStream
from triton_chat.timers import Watchdog

RPC = StreamRpc(pb.ModelInferRequest(id="x"), {}, timeout=None, first_token_s=10.0, idle_s=10.0)
STATUS = grpc.StatusCode.INVALID_ARGUMENT


class Failed(grpc.RpcError):
    """The RPC ends with a status."""

    def code(self) -> grpc.StatusCode:
        return STATUS

    def details(self) -> str:
        return "the status"


class Responses:
    """An RPC as both kinds of gRPC have it. What is callable among its steps happens while the reader waits."""

    def __init__(self, *steps: Any) -> None:
        self._steps = iter(steps)
        self.cancelled = False

    def __next__(self) -> Any:
        for step in self._steps:
            if isinstance(step, Exception):
                raise step
            if not callable(step):
                return step
            step()
        raise StopIteration

    async def read(self) -> Any:
        return next(self, grpc.aio.EOF)

    def cancel(self) -> None:
        self.cancelled = True


Seen = Callable[[str], None]
Read = Callable[[Responses, Seen], None]


def read_in_a_thread(responses: Responses, seen: Seen) -> None:
    with ChatStream(responses, RPC, "here", Watchdog()) as stream:
        for event in stream:
            seen(event.text)


def read_on_a_loop(responses: Responses, seen: Seen) -> None:
    async def read() -> None:
        async with AsyncChatStream(responses, RPC, "here") as stream:
            async for event in stream:
                seen(event.text)

    asyncio.run(read())


@pytest.fixture(params=[read_in_a_thread, read_on_a_loop], ids=["threads", "asyncio"])
def read(request: pytest.FixtureRequest) -> Read:
    return request.param


def test_a_complete_answer(read: Read) -> None:
    responses = Responses(say("a", tokens=1), say("b", "stop", tokens=2))
    texts: list[str] = []
    read(responses, texts.append)
    assert texts == ["a", "b"]
    assert responses.cancelled


@pytest.mark.parametrize(
    ("steps", "error", "text"),
    [
        ((), errors.EngineError, "before the answer was complete"),
        ((Failed(),), errors.InvalidRequestError, "the status"),
        ((fail("Exceeds maximum queue size"),), errors.OverloadedError, "queue"),
        ((fail("Exceeds maximum queue size"), Failed()), errors.OverloadedError, "queue"),
        ((fail("Exceeds maximum queue size"), fail("another")), errors.OverloadedError, "queue"),
        ((pb.ModelStreamInferResponse(infer_response={"outputs": [{"name": "x"}]}),), errors.EngineError, "no output"),
    ],
    ids=["cut-short", "status", "error", "error-then-status", "two-errors", "unreadable"],
)
def test_a_failure(read: Read, steps: tuple[Any, ...], error: type[Exception], text: str) -> None:
    responses = Responses(say("a", tokens=1), *steps)
    texts: list[str] = []
    with pytest.raises(error, match=text):
        read(responses, texts.append)
    assert texts == ["a"]
    assert responses.cancelled


def test_a_stream_that_its_reader_closed_was_not_cut_short() -> None:
    responses = Responses()
    stream = ChatStream(responses, RPC, "here", Watchdog())
    responses._steps = iter((stream.close,))
    assert list(stream) == []


async def test_nor_was_one_that_another_task_closed() -> None:
    responses = Responses()
    stream = AsyncChatStream(responses, RPC, "here")
    responses._steps = iter((stream.cancel,))
    assert [event async for event in stream] == []
