"""Several servers behind a name: who gets a request, and what becomes of it when one of them goes, hangs or returns."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from tritonclient.grpc import service_pb2 as pb

from chat_gateway.answers.generation import Generation, Order, Prompt
from chat_gateway.errors import ApiError
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream import servers as module
from chat_gateway.upstream.server import Server
from chat_gateway.upstream.triton import Upstream
from tests.client.fake_server import FakeTriton, Received, echo, fail, say
from tests.gateway.fakes import WAIT_S
from tests.gateway.tritons import STALL, Name, Process, refuses, stops
from triton_chat.errors import EngineError, NotComputedError, ServerUnavailableError, TritonChatError
from triton_chat.types import SamplingParams

Start = Callable[..., FakeTriton]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[FakeTriton] = []

    def begin(url: str = "127.0.0.1:0") -> FakeTriton:
        started.append(FakeTriton(url))
        return started[-1]

    yield begin
    for triton in started:
        triton.stop()


@pytest.fixture
def name() -> Name:
    return Name()


@pytest.fixture
async def upstream(name: Name) -> AsyncIterator[Upstream]:
    opened = Upstream(GatewaySettings(), lookup=name)
    yield opened
    await opened.close()


def generation(upstream: Upstream, prompt: str = "hello") -> Generation:
    return Generation(upstream, Order(model="chat", prompts=[Prompt(text=prompt)], sampling=SamplingParams()))


async def answer(upstream: Upstream, prompt: str = "hello") -> str:
    """As a route gets it."""
    await upstream.resolve("chat")
    (result,) = await generation(upstream, prompt).results()
    return result.text


async def until(condition: Callable[[], object]) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is another thread's or a server's
            await asyncio.sleep(0.01)


async def both_up(upstream: Upstream, name: Name, first: FakeTriton, second: FakeTriton) -> None:
    name.urls = [first.url, second.url]
    assert await answer(upstream) == "hello"
    await until(lambda: upstream.servers.num_up == 2)
    first.requests.clear()
    second.requests.clear()


def served_by(upstream: Upstream, url: str) -> Server:
    return upstream.servers._servers[url]


async def test_a_rollout_under_load_fails_nobody(upstream: Upstream, name: Name, start: Start) -> None:
    """All old servers refuse at once, and only then the name tells of new ones."""
    old, new = [start(), start()], [start(), start()]
    name.urls = [triton.url for triton in old]
    texts: list[str] = []
    rolling = True

    async def call() -> None:
        while rolling:
            texts.append(await answer(upstream))

    callers = [asyncio.create_task(call()) for _ in range(8)]
    await until(lambda: len(texts) > 100)
    for triton in old:
        stops(triton)
    await until(lambda: upstream.servers.num_up == 0)
    name.urls = [*name.urls, new[0].url]
    await until(lambda: new[0].requests)
    name.urls = [triton.url for triton in new]
    await asyncio.gather(*(asyncio.to_thread(triton.drain) for triton in old))
    await until(lambda: new[1].requests)
    await until(lambda: upstream.servers.num_known == 2)
    goal = len(texts) + 300
    await until(lambda: len(texts) > goal)
    rolling = False
    await asyncio.gather(*callers)
    assert set(texts) == {"hello"}


async def test_one_that_does_not_answer_any_more_and_then_does(upstream: Upstream, name: Name, start: Start) -> None:
    well = start()
    with Process() as stuck:
        name.urls = [stuck.url]
        async with generation(upstream, STALL) as stalled:
            assert [event.text for event in (await stalled.pending()).values()] == ["word"]
            name.urls = [stuck.url, well.url]
            await until(lambda: upstream.servers.num_up == 2)
            began = time.monotonic()
            stuck.signal(signal.SIGSTOP)
            without_token = [asyncio.create_task(answer(upstream)) for _ in range(4)]
            with pytest.raises(ServerUnavailableError, match="does not answer any more"):
                await stalled.pending()
            assert await asyncio.gather(*without_token) == ["hello"] * 4
            assert time.monotonic() - began < 10
        assert upstream.servers.num_up == 1
        well.requests.clear()
        assert [await answer(upstream) for _ in range(10)] == ["hello"] * 10
        assert len(well.requests) == 10
        stuck.signal(signal.SIGCONT)
        await until(lambda: upstream.servers.num_up == 2)
        used = served_by(upstream, stuck.url).used_at
        while served_by(upstream, stuck.url).used_at == used:
            assert await answer(upstream) == "hello"


async def test_the_only_one_that_does_not_answer_any_more(upstream: Upstream, name: Name) -> None:
    with Process() as stuck:
        name.urls = [stuck.url]
        assert await answer(upstream) == "hello"
        began = time.monotonic()
        stuck.signal(signal.SIGSTOP)
        with pytest.raises(ServerUnavailableError):
            await answer(upstream)
        assert time.monotonic() - began < 10
        with pytest.raises(ApiError) as refused:
            await answer(upstream)
        assert (refused.value.status, refused.value.retry_after) == (503, 2)
        with pytest.raises(ApiError):
            await upstream.models()
        stuck.signal(signal.SIGCONT)
        await until(lambda: upstream.servers.num_up == 1)
        assert await answer(upstream) == "hello"


async def test_one_that_is_killed_and_comes_back(upstream: Upstream, name: Name, start: Start) -> None:
    staying, going = start(), start()
    await both_up(upstream, name, staying, going)
    going.reply = going.stalls_after()
    waiting = [asyncio.create_task(answer(upstream)) for _ in range(4)]
    await until(lambda: len(going.requests) + len(staying.requests) == 4 and going.requests)
    await asyncio.to_thread(going.stop)
    assert await asyncio.gather(*waiting) == ["hello"] * 4
    returned = start(going.url)
    await until(lambda: upstream.servers.num_up == 2)
    async with asyncio.timeout(WAIT_S):
        while not returned.requests:
            assert await answer(upstream) == "hello"


async def test_one_that_refuses_but_says_it_is_ready_is_left_alone(
    upstream: Upstream, name: Name, start: Start
) -> None:
    well, refusing = start(), start()
    await both_up(upstream, name, well, refusing)
    refusing.reply = refuses
    assert [await answer(upstream) for _ in range(40)] == ["hello"] * 40
    assert len(refusing.requests) < 4


async def test_a_failed_engine_is_left_for_another(upstream: Upstream, name: Name, start: Start) -> None:
    well, failing = start(), start()
    await both_up(upstream, name, well, failing)
    failing.reply = lambda _: iter([fail("Failed to process the request(s), message: Stub process is not healthy.")])
    assert [await answer(upstream) for _ in range(20)] == ["hello"] * 20
    assert len(failing.requests) < 4


async def test_a_failed_engine_is_told_of_where_there_is_no_other(upstream: Upstream, name: Name, start: Start) -> None:
    failing = start()
    name.urls = [failing.url]
    failing.reply = lambda _: iter([fail("Stub process is not healthy.")])
    with pytest.raises(EngineError):
        await answer(upstream)
    assert len(failing.requests) == 1
    failing.reply = echo
    assert await answer(upstream) == "hello"  # it is not left alone


async def test_what_cannot_be_computed_is_not_tried_elsewhere(upstream: Upstream, name: Name, start: Start) -> None:
    first, second = start(), start()
    await both_up(upstream, name, first, second)
    first.reply = second.reply = lambda _: iter([fail("no [code=not_computed]")])
    with pytest.raises(NotComputedError):
        await answer(upstream)
    assert len(first.requests) + len(second.requests) == 1


async def test_signs_of_life_bind_to_no_server(upstream: Upstream, name: Name, start: Start) -> None:
    first, second = start(), start()
    await both_up(upstream, name, first, second)

    def waits_and_dies(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield say("")
        yield say("")
        first.reply = second.reply = echo
        yield from refuses(received)

    first.reply = second.reply = waits_and_dies
    assert await answer(upstream) == "hello"
    assert len(first.requests) == len(second.requests) == 1


async def test_nobody_waits_for_long_where_none_is_left(
    upstream: Upstream, name: Name, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = start()
    name.urls = [only.url]
    assert await answer(upstream) == "hello"
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    await asyncio.to_thread(only.stop)
    with pytest.raises((ServerUnavailableError, ApiError)):
        await answer(upstream)
    start(only.url)
    await until(lambda: upstream.servers.num_up == 1)
    assert await answer(upstream) == "hello"


async def test_the_one_with_fewest_requests_is_next(upstream: Upstream, name: Name, start: Start) -> None:
    first, second = start(), start()
    await both_up(upstream, name, first, second)
    first.reply, second.reply = first.stalls_after("word"), second.stalls_after("word")
    async with generation(upstream) as one, generation(upstream) as two:
        await one.pending()
        await two.pending()
        assert (len(first.requests), len(second.requests)) == (1, 1)
        second.reply = echo
        busy = served_by(upstream, second.url)
        busy.outstanding += 10
        first.reply = echo
        assert [await answer(upstream) for _ in range(6)] == ["hello"] * 6
        assert (len(first.requests), len(second.requests)) == (7, 1)
        busy.outstanding -= 10


async def test_one_that_left_the_name_finishes_what_it_has(upstream: Upstream, name: Name, start: Start) -> None:
    staying, leaving = start(), start()
    name.urls = [leaving.url]

    def slow(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield say("one", tokens=1)
        leaving.stall(received)
        yield say(" two", "stop", tokens=2)

    leaving.reply = slow
    async with generation(upstream) as running:
        await running.pending()
        name.urls = [staying.url]
        await until(lambda: staying.url in upstream.servers._servers and served_by(upstream, staying.url).up)
        leaving.requests.clear()
        assert [await answer(upstream) for _ in range(4)] == ["hello"] * 4
        assert (len(leaving.requests), upstream.servers.num_known) == (0, 2)
        leaving.release.set()
        assert [event.text for event in (await running.pending()).values()] == [" two"]
    await until(lambda: upstream.servers.num_known == 1)


async def test_a_name_that_cannot_be_looked_up_changes_nothing(upstream: Upstream, name: Name, start: Start) -> None:
    name.urls = [start().url]
    assert await answer(upstream) == "hello"
    name.fails, before = True, name.lookups
    await until(lambda: name.lookups > before)
    assert await answer(upstream) == "hello"


async def test_a_name_that_never_had_an_address(upstream: Upstream, name: Name) -> None:
    name.fails = True
    with pytest.raises(ApiError) as refused:
        await answer(upstream)
    assert refused.value.status == 503


def test_no_server_is_asked_before_there_is_a_request(name: Name) -> None:
    Upstream(GatewaySettings(), lookup=name)
    assert name.lookups == 0


async def test_the_end_ends_what_runs(upstream: Upstream, name: Name, start: Start) -> None:
    triton = start()
    name.urls = [triton.url]
    triton.reply = triton.stalls_after("word")
    async with generation(upstream) as running:
        await running.pending()
        lookups = name.lookups
        await upstream.close()
        with pytest.raises(TritonChatError):
            await running.pending()
        assert triton.requests[0].cancelled.wait(WAIT_S)
        assert (name.lookups, upstream.servers.num_known) == (lookups, 0)
    triton.reply = echo
    assert await answer(upstream) == "hello"  # who asks later begins anew
