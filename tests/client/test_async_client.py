from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from chat_engine.errors import InvalidArgumentError, to_wire
from tests.client.fake_server import WAIT_S, FakeTriton, fail, say
from triton_chat import errors
from triton_chat.client import AsyncChatClient
from triton_chat.types import Timeouts

QUICK = Timeouts(first_token=0.1, idle=0.1)


@pytest.fixture
async def aclient(fake: FakeTriton) -> AsyncIterator[AsyncChatClient]:
    async with AsyncChatClient(fake.url) as client:
        yield client


async def cancelled_on_server(fake: FakeTriton) -> bool:
    received = await asyncio.to_thread(fake.next_request)
    return await asyncio.to_thread(received.cancelled.wait, WAIT_S)


async def test_events(aclient: AsyncChatClient) -> None:
    events = [event async for event in aclient.stream(prompt="hello there")]
    assert [(event.text, event.finish_reason) for event in events] == [("hello", ""), (" there", "stop")]


async def test_generate(aclient: AsyncChatClient) -> None:
    result = await aclient.generate(prompt="hello there")
    assert (result.text, result.finish_reason, result.num_output_tokens) == ("hello there", "stop", 2)


async def test_many_at_once(aclient: AsyncChatClient) -> None:
    results = await asyncio.gather(*(aclient.generate(prompt=f"text {n}") for n in range(20)))
    assert [result.text for result in results] == [f"text {n}" for n in range(20)]


async def test_batch_and_health(aclient: AsyncChatClient) -> None:
    assert [result.text for result in await aclient.generate_batch(prompts=["b", "a"])] == ["b", "a"]
    assert await aclient.is_live()
    assert await aclient.is_ready()
    assert not await aclient.is_ready("broken")
    assert (await aclient.server_metadata()).version == "1.0"
    assert [model.ready for model in await aclient.models()] == [True, False]


async def test_kinds_and_tokens(fake: FakeTriton, aclient: AsyncChatClient) -> None:
    for _ in range(2):
        assert [model.kind for model in await aclient.models()] == ["chat", "other"]
    assert fake.configs_asked == ["chat"]
    tokens = await aclient.tokenize("hi", headers={"X-A": "1"})
    assert fake.next_request().metadata["x-a"] == "1"
    assert tokens.text == '[{"role":"user","content":"hi"}]'
    assert await aclient.detokenize(tokens.token_ids) == tokens


async def test_options_of_one_call(fake: FakeTriton, aclient: AsyncChatClient) -> None:
    await aclient.generate("hi", headers={"Traceparent": "00-1"}, add_generation_prompt=False)
    received = fake.next_request()
    assert received.metadata["traceparent"] == "00-1"
    assert received.tensor("chat_parameters") == ['{"add_generation_prompt":false}']


@pytest.mark.parametrize("after", [0, 1])
async def test_an_error_in_the_stream(fake: FakeTriton, aclient: AsyncChatClient, after: int) -> None:
    refusal = InvalidArgumentError("must be positive", field="temperature")
    fake.reply = lambda _: iter([say("a", tokens=1)] * after + [fail(to_wire(refusal))])
    with pytest.raises(errors.InvalidRequestError, match=r"^temperature: must be positive$") as caught:
        await aclient.generate("hi")
    assert caught.value.field == "temperature"


async def test_ended_too_early(fake: FakeTriton, aclient: AsyncChatClient) -> None:
    fake.reply = lambda _: iter([say("half")])
    with pytest.raises(errors.EngineError):
        await aclient.generate("hi")


async def test_nobody_there() -> None:
    async with AsyncChatClient("127.0.0.1:1") as client:
        with pytest.raises(errors.ServerUnavailableError):
            await client.generate("hi")
        assert not await client.is_live()
        assert not await client.is_ready()


@pytest.mark.parametrize(
    ("texts", "timeouts", "message"),
    [((), QUICK, "no first token"), (("one",), Timeouts(idle=0.1), "no new token"), (("one",), None, "time limit")],
)
async def test_timeouts(fake: FakeTriton, texts: tuple[str, ...], timeouts: Timeouts | None, message: str) -> None:
    fake.reply = fake.stalls_after(*texts)
    async with AsyncChatClient(fake.url, timeouts=timeouts or Timeouts(total=0.2)) as client:
        with pytest.raises(errors.StreamTimeoutError, match=message):
            await client.generate("hi")
        assert await cancelled_on_server(fake)


async def test_a_slow_reader_is_not_an_idle_server(fake: FakeTriton) -> None:
    async with AsyncChatClient(fake.url, timeouts=QUICK) as client:
        stream = client.stream(prompt="hello")
        await anext(stream)
        await asyncio.sleep(0.25)  # longer than the limit; this is what is tested
        assert (await anext(stream)).finish_reason == "stop"


class TestCancel:
    @pytest.fixture(autouse=True)
    def _stalling(self, fake: FakeTriton) -> None:
        fake.reply = fake.stalls_after("one")

    async def test_the_task(self, fake: FakeTriton, aclient: AsyncChatClient) -> None:
        task = asyncio.create_task(aclient.generate("hi"))
        await asyncio.to_thread(fake.next_request)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(fake.requests[-1].cancelled.wait, WAIT_S)

    async def test_aclose(self, fake: FakeTriton, aclient: AsyncChatClient) -> None:
        stream = aclient.stream("hi")
        await anext(stream)
        await stream.aclose()
        assert await cancelled_on_server(fake)
        assert [event async for event in stream] == []

    async def test_leaving_the_block(self, fake: FakeTriton, aclient: AsyncChatClient) -> None:
        async def read_one_and_fail() -> None:
            async with aclient.stream("hi") as stream:
                await anext(stream)
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            await read_one_and_fail()
        assert await cancelled_on_server(fake)

    async def test_dropping_it(self, fake: FakeTriton, aclient: AsyncChatClient) -> None:
        async for _ in aclient.stream("hi"):
            break
        gc.collect()
        assert await cancelled_on_server(fake)

    async def test_from_another_task(self, fake: FakeTriton, aclient: AsyncChatClient) -> None:
        stream = aclient.stream("hi")
        await anext(stream)
        reader = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        stream.cancel()
        with pytest.raises(errors.RequestCancelledError):
            await reader
        assert await cancelled_on_server(fake)
