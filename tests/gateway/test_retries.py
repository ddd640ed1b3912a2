from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from chat_gateway.upstream import retries
from chat_gateway.upstream.retries import BROKEN_TRIES, retried
from chat_gateway.upstream.server import Server
from chat_gateway.upstream.servers import Servers
from tests.gateway.fakes import FakeClient
from triton_chat.channel import Target, parse_url
from triton_chat.errors import (
    EngineError,
    NotComputedError,
    OverloadedError,
    ServerStoppingError,
    ServerUnavailableError,
    ServerUnreachedError,
    TritonChatError,
)

BROKEN, STOPPING, UNREACHED = (
    ServerUnavailableError("broken"),
    ServerStoppingError("stopping"),
    ServerUnreachedError("away"),
)
FAILED = EngineError("failed")


class Failing:
    """Fails in the given ways, whichever server is asked; then answers how often it was asked."""

    def __init__(self, *failures: TritonChatError) -> None:
        self._failures = list(failures)
        self.asked: list[Server] = []

    async def ask(self, server: Server) -> int:
        self.asked.append(server)
        if self._failures:
            raise self._failures.pop(0)
        return len(self.asked)


def servers_of(*urls: str) -> Servers:
    async def lookup() -> Sequence[Target]:
        return [parse_url(url) for url in urls]

    return Servers(lookup, lambda _: FakeClient())


@pytest.fixture
def servers() -> Servers:
    return servers_of("a:1", "b:1")


@pytest.mark.parametrize(
    "failures",
    [[], [BROKEN], [FAILED], [STOPPING] * 5, [UNREACHED] * 5, [STOPPING, UNREACHED, BROKEN, STOPPING]],
)
async def test_asked_until_it_answers(servers: Servers, failures: list[TritonChatError]) -> None:
    assert await retried(servers, "chat", Failing(*failures).ask) == len(failures) + 1


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        ([BROKEN] * 100, BROKEN_TRIES),
        ([FAILED] * 100, BROKEN_TRIES),
        ([STOPPING, BROKEN, STOPPING, FAILED], 4),
        ([STOPPING, OverloadedError("full")], 2),
        ([NotComputedError("no")], 1),
    ],
)
async def test_the_last_failure_is_told(servers: Servers, failures: list[TritonChatError], tries: int) -> None:
    failing = Failing(*failures)
    with pytest.raises(TritonChatError) as told:
        await retried(servers, "chat", failing.ask)
    assert told.value is failures[tries - 1]
    assert len(failing.asked) == tries


@pytest.mark.parametrize("failure", [BROKEN, STOPPING, FAILED])
async def test_another_one_is_asked_next(servers: Servers, failure: TritonChatError) -> None:
    failing = Failing(failure)
    await retried(servers, "chat", failing.ask)
    first, second = failing.asked
    assert first is not second
    assert (first.left_alone, second.left_alone) == (True, False)


async def test_a_failed_engine_is_not_asked_again_where_it_is_the_only_one() -> None:
    failing = Failing(FAILED)
    with pytest.raises(EngineError):
        await retried(servers_of("a:1"), "chat", failing.ask)
    assert len(failing.asked) == 1


@pytest.mark.parametrize("failure", [BROKEN, STOPPING, FAILED])
async def test_not_what_has_begun(servers: Servers, failure: TritonChatError) -> None:
    failing = Failing(failure)
    with pytest.raises(type(failure)):
        await retried(servers, "chat", failing.ask, unless=lambda: True)
    assert len(failing.asked) == 1


async def test_refusals_are_not_tried_for_ever(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "PATIENCE_S", 0.2)
    failing = Failing(*[STOPPING] * 1000)
    with pytest.raises(ServerStoppingError):
        await asyncio.wait_for(retried(servers, "chat", failing.ask), 5)
    assert 1 < len(failing.asked) < 1000


def test_refusals_are_waited_for_longer_and_longer() -> None:
    for _ in range(20):  # they are drawn by chance
        waits = [retries._wait_s(number) for number in range(1, 12)]
        assert 0.004 <= waits[0] <= 0.008
        assert 0.125 <= waits[-1] <= 0.25 == max(0.25, *waits)


@pytest.mark.parametrize("failure", [ServerUnavailableError, ServerStoppingError])
async def test_the_log_names_the_request_and_nothing_else(
    caplog: pytest.LogCaptureFixture, servers: Servers, failure: type[TritonChatError]
) -> None:
    with caplog.at_level(logging.INFO):
        await retried(servers, "chat", Failing(failure("at 10.1.2.3")).ask, "r-1")
    (record,) = caplog.records
    assert record.__dict__["request_id"] == "r-1"
    assert "10.1.2.3" not in record.getMessage()
