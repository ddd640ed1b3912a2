"""How long a reader waits, by a clock of the test's own."""

from __future__ import annotations

import json

import pytest

from tests.client.fake_server import say
from triton_chat import ChatEvent, limits
from triton_chat.collector import Collector
from triton_chat.limits import WaitLimit
from triton_chat.wire import read_stream_response

SCORED = {"token": "a", "logprob": None, "bytes": [97], "token_id": 1, "rank": None, "top_logprobs": []}


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def wait(limit: WaitLimit, clock: Clock, seconds: float, *, is_token: bool) -> None:
    """The reader waits, and then an event comes."""
    assert limit.begin() > clock.now + seconds
    clock.now += seconds
    limit.end(is_token=is_token)


def left(limit: WaitLimit, clock: Clock) -> float:
    return limit.begin() - clock.now


def test_tokens_must_come_within_the_idle_limit(clock: Clock) -> None:
    limit = WaitLimit(300, 60, lambda: None)
    assert left(limit, clock) == 300
    wait(limit, clock, 200, is_token=True)
    assert left(limit, clock) == 60
    wait(limit, clock, 50, is_token=True)
    assert left(limit, clock) == 60
    assert "no new token for 60 seconds" in str(limit.error())


def test_a_sign_of_life_resets_the_idle_limit_before_and_behind_the_first_token(clock: Clock) -> None:
    limit = WaitLimit(300, 60, lambda: None)
    wait(limit, clock, 5, is_token=False)
    assert left(limit, clock) == 60
    assert "no sign of life for 60 seconds" in str(limit.error())
    wait(limit, clock, 5, is_token=True)
    wait(limit, clock, 55, is_token=False)
    assert left(limit, clock) == 60


def test_signs_of_life_do_not_stretch_the_limit_of_the_first_token(clock: Clock) -> None:
    limit = WaitLimit(100, 60, lambda: None)
    for _ in range(9):
        wait(limit, clock, 10, is_token=False)
        clock.now += 1000  # a slow reader does not use it up
    assert left(limit, clock) == 10
    assert "no first token within 100 seconds" in str(limit.error())


@pytest.mark.parametrize(
    ("event", "waits"),
    [
        (say(""), True),
        (say("", tokens=1), False),
        (say("", "stop"), False),
        (say("the prompt"), False),
        (
            say(
                "",
                prompt_logprobs=json.dumps([SCORED]),
            ),
            False,
        ),
    ],
)
def test_an_event_without_anything_says_that_the_request_waits(event: object, waits: bool) -> None:
    read, _ = read_stream_response(event)
    assert read is not None
    assert read.is_waiting is waits


def test_a_sign_of_life_is_no_first_token() -> None:
    collector = Collector()
    collector.add(ChatEvent("", num_input_tokens=5))
    assert collector.result().ttft_s is None
    collector.add(ChatEvent("a", num_input_tokens=5, num_output_tokens=1))
    assert collector.result().ttft_s is not None
    assert collector.result().text == "a"
