from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triton_chat.pace import AT_ONCE_S, Pace


def rate(*events: tuple[float, int]) -> float | None:
    """Of events as seconds and tokens so far."""
    pace = Pace()
    for now_s, tokens in events:
        pace.add(now_s, tokens)
    return pace.tokens_per_s


def test_one_token_at_a_time() -> None:
    assert rate(*((0.5 + index * 0.05, index + 1) for index in range(41))) == pytest.approx(20.0)


def test_the_tokens_of_the_first_event_do_not_count() -> None:
    assert rate((1.0, 30), (2.0, 40), (3.0, 50)) == pytest.approx(10.0)


def test_neither_do_those_that_were_there_with_it() -> None:
    burst = [(1.0 + index * 0.0001, index + 1) for index in range(30)]
    assert rate(*burst, (2.0, 40), (3.0, 50)) == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [(1.0, 1)],
        [(1.0, 56)],
        [(0.14, 1), (0.142, 30), (0.1435, 56)],
        [(1.0, 56), (9.0, 56)],
    ],
    ids=["nothing", "one token", "one event", "a burst", "only the end comes later"],
)
def test_what_comes_at_once_has_no_rate(events: list[tuple[float, int]]) -> None:
    assert rate(*events) is None


def test_the_end_of_the_stream_is_no_token() -> None:
    assert rate((1.0, 1), (2.0, 11), (60.0, 11)) == pytest.approx(10.0)


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), max_size=30))
def test_no_rate_beyond_what_can_be_measured(steps: list[tuple[float, int]]) -> None:
    now_s, tokens, events = 0.0, 0, []
    for pause_s, new in steps:
        now_s, tokens = now_s + pause_s, tokens + new
        events.append((now_s, tokens))
    found = rate(*events)
    assert found is None or 0 < found <= tokens / AT_ONCE_S
