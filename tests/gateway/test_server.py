"""What one server is known to be, without a network."""

from __future__ import annotations

import asyncio
import math

import pytest

from chat_gateway.upstream import server as module
from chat_gateway.upstream.server import LOST_S, PERIOD_S, Server
from tests.gateway.fakes import WAIT_S, FakeClient, model
from triton_chat.errors import (
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerSilentError,
    ServerUnavailableError,
    ServerUnreachedError,
    TritonChatError,
)
from triton_chat.types import ModelInfo


class Hanging(FakeClient):
    """Does not answer while `hangs`; a model that `is_slow` keeps only its list waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = self.is_slow = False

    async def check_live(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()

    async def models(self) -> list[ModelInfo]:
        if self.is_slow:
            await asyncio.Event().wait()
        return await super().models()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


async def test_what_it_serves() -> None:
    client = FakeClient()
    client.catalogue = [model("chat"), model("mixtral", ready=False)]
    server = Server(client)
    assert (server.up, server.fresh) == (False, False)
    await server.look()
    assert (server.up, server.fresh) == (True, True)
    assert [server.serves(name) for name in ("chat", "mixtral", "nope")] == [True, False, False]
    client.failure = ServerUnavailableError("gone")
    await server.look()
    assert (server.up, server.serves("chat")) == (False, False)


async def test_it_is_left_alone_for_longer_each_time_it_fails_again(clock: list[float]) -> None:
    server = Server(FakeClient())
    for expected_s in (1, 2, 4, 8, 8):
        for _ in range(10):  # of a burst
            server.failed(down=False)
        assert server.left_alone
        clock[0] += expected_s - 0.01
        assert server.left_alone
        clock[0] += 0.02
        assert not server.left_alone


async def test_what_it_answers_clears_its_name(clock: list[float]) -> None:
    async def answers(_: Server) -> int:
        clock[0] += 1
        return 1

    server = Server(FakeClient())
    for _ in range(3):
        server.failed(down=False)
        clock[0] += 10
        assert await server.run(answers) == 1
    server.failed(down=False)
    clock[0] += 1.01
    assert not server.left_alone


async def test_what_began_before_it_failed_proves_nothing(clock: list[float]) -> None:
    server = Server(FakeClient())

    async def answers(_: Server) -> None:
        clock[0] += 1
        server.failed(down=False)

    await server.run(answers)
    clock[0] += 1.01
    server.failed(down=False)
    clock[0] += 1.01
    assert server.left_alone


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setattr(module, "LOST_S", 0.03)
    monkeypatch.setattr(module, "_FIRST_LIST_S", 0.02)


async def forever(_: Server) -> None:
    await asyncio.Event().wait()


@pytest.mark.usefixtures("hurried")
async def test_who_waits_on_one_that_is_silent_is_told() -> None:
    client = Hanging()
    server = Server(client)
    await server.look()
    running = asyncio.create_task(server.run(forever))
    client.hangs = True
    while not running.done():
        await server.look()
    with pytest.raises(ServerUnavailableError, match="does not answer any more"):
        await running
    assert server.outstanding == 0


@pytest.mark.parametrize(
    ("error", "lost_after_s"),
    [(ServerSilentError("nothing comes back"), LOST_S), (ServerUnreachedError("it refuses"), math.inf)],
)
async def test_who_waits_where_no_connection_comes_about(
    clock: list[float], error: TritonChatError, lost_after_s: float
) -> None:
    """A server that refuses may be stopping, with answers still to come on the connections it has."""
    client = FakeClient()
    server = Server(client)
    await server.look()
    running = asyncio.create_task(server.run(forever))
    await asyncio.sleep(0)
    began, client.failure = clock[0], error
    while not running.done() and clock[0] < began + 4 * LOST_S:
        clock[0] += PERIOD_S
        await server.look()
        for _ in range(9):  # steps of the loop, whose clock stands still: more than an end needs
            await asyncio.sleep(0)
    assert (clock[0] - began if running.done() else math.inf) == lost_after_s
    running.cancel()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("slow_to_tell", ["that it lives", "its models"])
async def test_one_that_still_sends_is_busy(slow_to_tell: str) -> None:
    client = Hanging()
    server = Server(client)
    await server.look()
    client.hangs, client.is_slow = slow_to_tell == "that it lives", slow_to_tell == "its models"
    running = asyncio.create_task(server.run(forever))
    for _ in range(5):
        looking = server.look()
        await asyncio.sleep(0)
        server.heard()
        await looking
    assert (running.done(), server.up) == (False, True)
    await server.look()
    assert server.up == (slow_to_tell == "its models")
    running.cancel()


async def test_a_list_that_is_late_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many models, or one that hangs, it takes long; the server lives all the same."""
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    client = Hanging()
    client.catalogue = [model("chat")]
    server = Server(client)
    await server.look()
    client.is_slow = True
    await server.look()
    assert server.serves("chat")
    client.is_slow, client.failure = False, ModelNotFoundError("unloaded while the list was made")
    await server.look()
    assert server.serves("chat")


@pytest.mark.parametrize("error", [InvalidRequestError("restricted"), EngineError("not found")])
async def test_what_is_no_triton_is_not_up_and_is_looked_at_again(error: TritonChatError) -> None:
    class Odd(FakeClient):
        async def check_live(self) -> None:
            raise error

    server, looks = Server(Odd()), asyncio.Event()
    server.watch(lambda _: looks.set())
    for _ in range(2):
        await asyncio.wait_for(looks.wait(), WAIT_S)
        looks.clear()
        server.look_soon()
        assert not server.up
    await server.close()


@pytest.mark.usefixtures("hurried")
async def test_a_model_that_is_slow_to_answer_ends_nothing() -> None:
    client = Hanging()
    server = Server(client)
    client.is_slow = True
    running = asyncio.create_task(server.run(forever))
    for _ in range(5):
        await server.look()
    assert (running.done(), server.up) == (False, False)
    running.cancel()


async def test_who_leaves_ends_the_work() -> None:
    server, ended = Server(FakeClient()), asyncio.Event()

    async def works(_: Server) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    running = asyncio.create_task(server.run(works))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (ended.is_set(), server.outstanding) == (True, 0)
