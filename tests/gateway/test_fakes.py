"""The fake is held against the SDK: the same signatures, and the same behaviour where the gateway can see it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from chat_engine.errors import InvalidArgumentError, to_wire
from tests.client.fake_server import FakeTriton, Reply, fail, say
from tests.gateway.fakes import WAIT_S, FakeClient, Script, fails, hangs, says
from triton_chat.client import AsyncChatClient
from triton_chat.errors import InvalidRequestError, RequestCancelledError

COMPLETE, FAILING, HANGING = "complete", "failing", "hanging"
REFUSED = "must be positive"


@dataclass
class Contender:
    """A client, and whether the work of its only request has been ended."""

    client: AsyncChatClient
    was_cancelled: Callable[[float], bool]


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.stop()


@pytest.fixture(params=["fake", "real"])
async def contender(request: pytest.FixtureRequest, behaviour: str, triton: FakeTriton) -> AsyncIterator[Contender]:
    if request.param == "fake":
        scripts: dict[str, Script] = {
            COMPLETE: says("one", "two"),
            FAILING: fails(InvalidRequestError(REFUSED, field="temperature"), "one"),
            HANGING: hangs("one"),
        }
        fake = FakeClient()
        fake.script = scripts[behaviour]
        yield Contender(fake, lambda seconds: fake.streams[0].cancelled.wait(seconds))
        return
    replies: dict[str, Reply] = {
        COMPLETE: lambda _: iter([say("one", tokens=1), say("two", "stop", tokens=2)]),
        FAILING: lambda _: iter(
            [say("one", tokens=1), fail(to_wire(InvalidArgumentError(REFUSED, field="temperature")))]
        ),
        HANGING: triton.stalls_after("one"),
    }
    triton.reply = replies[behaviour]
    async with AsyncChatClient(triton.url) as client:
        yield Contender(client, lambda seconds: triton.next_request().cancelled.wait(seconds))


@pytest.mark.parametrize(
    "method", ["stream", "generate", "models", "tokenize", "detokenize", "embed", "is_ready", "close"]
)
def test_signatures(method: str) -> None:
    def parameters(owner: type) -> list[tuple[str, object, object]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(getattr(owner, method)).parameters.values()]

    assert parameters(FakeClient) == parameters(AsyncChatClient)


@pytest.mark.parametrize("behaviour", [COMPLETE])
async def test_a_complete_answer(contender: Contender) -> None:
    events = [event async for event in contender.client.stream("hi")]
    assert [(e.text, e.finish_reason, e.num_output_tokens) for e in events] == [("one", "", 1), ("two", "stop", 2)]


@pytest.mark.parametrize("behaviour", [FAILING])
async def test_a_failing_answer(contender: Contender) -> None:
    stream = contender.client.stream("hi")
    assert (await anext(stream)).text == "one"
    with pytest.raises(InvalidRequestError, match=f"^temperature: {REFUSED}$") as caught:
        await anext(stream)
    assert caught.value.field == "temperature"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize("behaviour", [HANGING])
async def test_closing_ends_the_work(contender: Contender) -> None:
    async with contender.client.stream("hi") as stream:
        assert (await anext(stream)).text == "one"
    assert await asyncio.to_thread(contender.was_cancelled, WAIT_S)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@pytest.mark.parametrize("behaviour", [HANGING])
async def test_closing_while_somebody_waits(contender: Contender) -> None:
    stream = contender.client.stream("hi")
    await anext(stream)
    waiting = asyncio.create_task(stream.__anext__())
    await asyncio.sleep(0)
    stream.cancel()
    with pytest.raises(RequestCancelledError):
        await waiting


@pytest.mark.parametrize("behaviour", [HANGING])
async def test_cancelling_who_waits_ends_the_work(contender: Contender) -> None:
    stream = contender.client.stream("hi")
    await anext(stream)
    waiting = asyncio.create_task(stream.__anext__())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.to_thread(contender.was_cancelled, WAIT_S)
