"""One name, several servers: the addresses of the loopback network at the same port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.client.fake_server import WAIT_S, FakeTriton, Received, echo, say
from tests.client.name_server import NAME, NameServer
from triton_chat import connection
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.errors import ServerStoppingError, ServerUnavailableError
from triton_chat.streams import AsyncChatStream

FIRST, SECOND, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
AGE_MS = 300
Start = Callable[..., FakeTriton]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    monkeypatch.setenv("no_grpc_proxy", NAME)
    with NameServer(FIRST, SECOND) as server:
        yield server


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers; those after the first one at its port, on other addresses."""
    started: list[FakeTriton] = []

    def begin(ip: str = FIRST, **options: int) -> FakeTriton:
        port = started[0].port if started else 0
        started.append(FakeTriton(f"{ip}:{port}", [(f"grpc.{name}", value) for name, value in options.items()]))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


@pytest.fixture
async def client(names: NameServer, first: FakeTriton) -> AsyncIterator[AsyncChatClient]:
    async with AsyncChatClient() as chat_client:
        chat_client.target = names.target(first.port)
        yield chat_client


@pytest.fixture
def first(start: Start) -> FakeTriton:
    """Ends its connections while they are young, but not what runs on them."""
    return start(max_connection_age_ms=AGE_MS)


@pytest.fixture
def second(first: FakeTriton, start: Start) -> FakeTriton:
    return start(SECOND)


async def met(client: AsyncChatClient, *servers: FakeTriton) -> None:
    """Calls until each of the servers has been called once more."""
    before = [len(server.requests) for server in servers]
    async with asyncio.timeout(WAIT_S):
        while any(len(server.requests) == count for server, count in zip(servers, before, strict=True)):
            await client.generate("hi")


async def calls(client: AsyncChatClient, number: int, *servers: FakeTriton) -> list[int]:
    """How many of so many calls each server gets; all of them succeed."""
    before = [len(server.requests) for server in servers]
    await asyncio.gather(*(client.generate("hi") for _ in range(number)))
    return [len(server.requests) - count for server, count in zip(servers, before, strict=True)]


async def test_calls_take_turns(client: AsyncChatClient, first: FakeTriton, second: FakeTriton) -> None:
    await met(client, first, second)
    assert await calls(client, 20, first, second) == [10, 10]


def test_calls_of_threads_take_turns(
    names: NameServer, first: FakeTriton, second: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "parse_url", lambda _: names.target(first.port))
    with ChatClient() as client:
        while not (first.requests and second.requests):
            client.generate("hi")
        before = len(first.requests), len(second.requests)
        for _ in range(10):
            client.generate("hi")
        assert (len(first.requests), len(second.requests)) == (before[0] + 5, before[1] + 5)


async def stream_on(client: AsyncChatClient, server: FakeTriton) -> AsyncChatStream:
    """A stream that this server has begun, and ends when it is released."""

    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield say("one", tokens=1)
        server.stall(received)
        yield say("two", "stop", tokens=2)

    server.reply = reply
    while True:
        stream = client.stream("hi")
        await anext(stream)
        if server.requests and stream.request_id == server.requests[-1].message.id:
            return stream
        await stream.aclose()


async def test_one_that_goes_takes_only_its_own_calls_along_and_is_found_when_it_returns(
    client: AsyncChatClient, first: FakeTriton, second: FakeTriton, start: Start
) -> None:
    await met(client, first, second)
    staying, going = await stream_on(client, first), await stream_on(client, second)
    first.reply = second.reply = echo
    await asyncio.to_thread(second.stop)
    with pytest.raises(ServerUnavailableError):
        await anext(going)
    assert await calls(client, 20, first) == [20]
    second = start(SECOND)
    await met(client, first, second)
    first.release.set()
    assert (await anext(staying)).finish_reason == "stop"


async def test_questions_go_on_to_the_next_one(client: AsyncChatClient, first: FakeTriton, second: FakeTriton) -> None:
    await met(client, first, second)
    second.stopping = True
    for _ in range(10):
        assert [(model.name, model.ready) for model in await client.models()] == [("chat", True), ("broken", False)]
        assert await client.is_ready("chat")
    first.stopping = True
    assert not await client.is_ready("chat")
    with pytest.raises(ServerStoppingError):
        await client.models()


async def test_one_that_never_was_there_costs_nothing(client: AsyncChatClient, first: FakeTriton) -> None:
    began = time.perf_counter()
    assert await calls(client, 20, first) == [20]
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("listening", ["127.0.0.1", "[::1]"])
async def test_a_name_of_both_families_and_a_server_on_one(names: NameServer, listening: str) -> None:
    """As `localhost` often is."""
    names.addresses = ("::1", "127.0.0.1")
    server = FakeTriton(f"{listening}:0")
    try:
        began = time.perf_counter()
        async with AsyncChatClient() as client:
            client.target = names.target(server.port)
            assert await calls(client, 20, server) == [20]
        assert time.perf_counter() - began < 1
    finally:
        server.stop()


async def test_a_new_one_is_found_when_a_connection_ends(
    client: AsyncChatClient, first: FakeTriton, start: Start, names: NameServer
) -> None:
    names.addresses = (FIRST,)
    third = start(THIRD)
    assert await calls(client, 20, first, third) == [20, 0]
    names.addresses = (FIRST, THIRD)
    await met(client, first, third)
    assert await calls(client, 20, first, third) == [10, 10]


async def test_what_runs_on_one_that_left_the_name_runs_on(
    client: AsyncChatClient, first: FakeTriton, second: FakeTriton, names: NameServer
) -> None:
    await met(client, first, second)
    going = await stream_on(client, second)
    second.reply = echo
    names.addresses = (FIRST,)
    async with asyncio.timeout(WAIT_S):
        while await calls(client, 4, second) != [0]:
            pass
    second.release.set()
    assert (await anext(going)).finish_reason == "stop"


async def test_connections_that_grow_old_cost_no_call(
    client: AsyncChatClient, first: FakeTriton, names: NameServer
) -> None:
    before = names.lookups
    running = await stream_on(client, first)
    first.reply = echo
    async with asyncio.timeout(WAIT_S):
        while names.lookups < before + 3:
            assert await calls(client, 4, first) == [4]
    first.release.set()
    assert (await anext(running)).finish_reason == "stop"
