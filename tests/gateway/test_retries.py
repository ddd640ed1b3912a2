from __future__ import annotations

import logging

import pytest

from chat_gateway.upstream import retries
from chat_gateway.upstream.retries import BROKEN_TRIES, REFUSED_TRIES, retried
from triton_chat.errors import OverloadedError, ServerStoppingError, ServerUnavailableError, TritonChatError

BROKEN, STOPPING = ServerUnavailableError("broken"), ServerStoppingError("stopping")


class Server:
    """Fails in the given ways, then answers how often it was asked."""

    def __init__(self, *failures: TritonChatError) -> None:
        self._failures = list(failures)
        self.times_asked = 0

    async def ask(self) -> int:
        self.times_asked += 1
        if self._failures:
            raise self._failures.pop(0)
        return self.times_asked


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds waited; no time passes."""
    noted: list[float] = []

    async def note(seconds: float) -> None:
        noted.append(seconds)

    monkeypatch.setattr(retries.asyncio, "sleep", note)
    return noted


@pytest.mark.parametrize(
    "failures",
    [[], [BROKEN], [STOPPING] * (REFUSED_TRIES - 1), [BROKEN, *[STOPPING] * (REFUSED_TRIES - 1)]],
)
async def test_asked_until_it_answers(failures: list[TritonChatError]) -> None:
    assert await retried(Server(*failures).ask) == len(failures) + 1


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        ([BROKEN] * 100, BROKEN_TRIES),
        ([STOPPING] * 100, REFUSED_TRIES),
        ([STOPPING, BROKEN, STOPPING, BROKEN], 4),
        ([STOPPING, OverloadedError("full")], 2),
    ],
)
async def test_the_last_failure_is_told(failures: list[TritonChatError], tries: int) -> None:
    server = Server(*failures)
    with pytest.raises(TritonChatError) as told:
        await retried(server.ask)
    assert told.value is failures[tries - 1]
    assert server.times_asked == tries


@pytest.mark.parametrize("failure", [BROKEN, STOPPING])
async def test_not_what_has_begun(failure: TritonChatError) -> None:
    server = Server(failure)
    with pytest.raises(type(failure)):
        await retried(server.ask, unless=lambda: True)
    assert server.times_asked == 1


async def test_refusals_are_waited_for_longer_and_longer(waits: list[float]) -> None:
    for _ in range(20):  # they are drawn by chance
        waits.clear()
        await retried(Server(*[STOPPING] * (REFUSED_TRIES - 1)).ask)
        assert len(waits) == REFUSED_TRIES - 1
        assert 0.002 <= waits[0] <= 0.004
        assert 0.125 <= waits[-1] <= 0.25 == max(0.25, *waits)
        assert 1 < sum(waits) < 2.6


async def test_a_burst_does_not_come_back_together(waits: list[float]) -> None:
    for _ in range(20):
        await retried(Server(STOPPING).ask)
    assert len(set(waits)) > 10


@pytest.mark.parametrize("failure", [ServerUnavailableError, ServerStoppingError])
async def test_the_log_names_the_request_and_nothing_else(
    caplog: pytest.LogCaptureFixture, failure: type[TritonChatError]
) -> None:
    with caplog.at_level(logging.INFO):
        await retried(Server(failure("at 10.1.2.3")).ask, "r-1")
    (record,) = caplog.records
    assert record.__dict__["request_id"] == "r-1"
    assert "10.1.2.3" not in record.getMessage()
