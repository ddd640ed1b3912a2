"""Statistics, the knee and the report, of numbers that are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks.answers import Answer
from benchmarks.contenders import ALONE, GATEWAY, GRPC, VLLM_SERVE
from benchmarks.figures import Limits, Served, Spread, knee, percentile
from benchmarks.loads import Arrivals, Chats, Load, LongPrompt, Seen
from benchmarks.plots import draw
from benchmarks.report import as_json, kept_of_alone, markdown, number
from benchmarks.runner import Results, in_turn

LIMITS = Limits(first_token=1.0, per_token=0.1)
CHATS, GAP = Chats("chats-8", "8 chats at once"), LongPrompt("long-prompt", "worst gap")
SLOW, FAST = (Arrivals(f"latency-{rate}", "", rate=rate, seconds=2.0, limits=LIMITS) for rate in (1, 4))


def answer(first: float, per_token: float, tokens: int = 11) -> Answer:
    return Answer(tokens, 100.0, [100.0 + first, 100.0 + first + per_token * (tokens - 1)], complete=True)


GOOD, LATE, NEVER = answer(0.5, 0.05), answer(2.0, 0.05), Answer(11, 100.0)


def test_the_spread_of_rounds() -> None:
    assert Spread.of([5, 1, 3, 2, 4]) == Spread(1, 2, 3, 4, 5)
    assert Spread.of([7]) == Spread(7, 7, 7, 7, 7)


@pytest.mark.parametrize(
    ("values", "part", "found"),
    [([1, 2], 0.5, 1.5), ([1, math.inf], 0.5, math.inf), ([1, 2, math.inf, math.inf], 0.9, math.inf), ([3], 0.99, 3)],
)
def test_percentiles(values: list[float], part: float, found: float) -> None:
    assert percentile(values, part) == found


def test_who_keeps_the_limits() -> None:
    assert [LIMITS.kept_by(one) for one in (GOOD, LATE, NEVER, answer(0.5, 0.2))] == [True, False, False, False]
    assert LIMITS.patience(20) == 3.0
    served = Served.of([GOOD, GOOD, LATE, NEVER], seconds=4.0, limits=LIMITS)
    assert (served.share, served.goodput) == (0.5, 0.5)
    assert served.first_tokens[-1] == math.inf


@pytest.mark.parametrize(
    ("shares", "found"),
    [({1: 1.0, 2: 0.9, 4: 0.89}, 2), ({1: 0.5}, None), ({}, None), ({4: 1.0, 1: 1.0}, 4)],
)
def test_the_knee(shares: dict[float, float], found: float | None) -> None:
    assert knee(shares) == found


def test_nobody_is_always_the_first() -> None:
    assert [in_turn([1, 2, 3], place)[0] for place in range(4)] == [1, 2, 3, 1]  # type: ignore[list-item]
    assert in_turn([], 3) == []


def results() -> Results:
    found = Results(left_out={"llama.cpp server": "it needs cmake"})
    figures = {ALONE: (100.0, 80.0), GRPC: (90.0, 76.0), GATEWAY: (80.0, 72.0), VLLM_SERVE: (70.0, 60.0)}
    for name, rounds in reversed(figures.items()):
        for figure in rounds:
            found.seen[CHATS.name][name].append(Seen(figure, [GOOD, LATE]))
            found.seen[GAP.name][name].append(Seen(10 * figure, [GOOD]))
    for name, late in ((GATEWAY, GOOD), (VLLM_SERVE, NEVER)):
        found.seen[SLOW.name][name].append(Seen(1.0, [GOOD, GOOD]))
        found.seen[FAST.name][name].append(Seen(1.0, [GOOD, late]))
    return found


LOADS: list[Load] = [CHATS, GAP, SLOW, FAST]


def test_what_a_door_leaves() -> None:
    seen = results().seen
    assert kept_of_alone(seen[CHATS.name], CHATS)[GRPC] == [0.9, 0.95]
    assert kept_of_alone(seen[GAP.name], GAP)[GATEWAY] == [1.25, 80 / 72]
    assert kept_of_alone({GATEWAY: [Seen(1.0, [])]}, CHATS) == {}


def test_the_report() -> None:
    text = markdown(results(), LOADS, "# What was measured")
    assert text.startswith("# What was measured\n")
    assert f"| {ALONE} | 90.0 | 80.0 to 100 | 85.0 to 95.0 | 1,250 | 50.0 |" in text
    assert text.index(f"| {ALONE} | 90.0") < text.index(f"| {VLLM_SERVE} | 65.0")
    assert "| 8 chats at once | 100% (100% to 100%) | 92% (90% to 95%) | 85% (80% to 90%) |" in text
    assert f"| {GATEWAY} | **4** (knee) | 100% | 1.00 | 500, 500, 500 | 50.0, 50.0, 50.0 |" in text
    assert f"| {VLLM_SERVE} | **1** (knee) | 100% |" in text
    assert f"| {VLLM_SERVE} | 4 | 50% | 0.50 | endless, endless, endless |" in text
    assert "- llama.cpp server: it needs cmake" in text


def test_a_question_that_was_not_asked_is_not_answered() -> None:
    found = Results()
    found.seen[CHATS.name][VLLM_SERVE].append(Seen(1.0, [GOOD]))
    text = markdown(found, [CHATS], "")
    assert "## Loads" in text
    assert "## Levels" not in text
    assert "## Latency" not in text
    assert "## Left out" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (5.0, "5.00"), (99.96, "100.0"), (1234.5, "1,234"), (0.0, "0"), (math.inf, "endless")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_all_figures_are_kept() -> None:
    whole = json.loads(json.dumps(as_json(results(), LOADS, {"dtype": "bfloat16"}), allow_nan=False))
    assert whole["about"] == {"dtype": "bfloat16"}
    (seen,) = whole["loads"][FAST.name]["contenders"][VLLM_SERVE]
    assert seen["answers"][1] == {"tokens": 11, "first_token_s": None, "per_token_s": None}


def test_a_picture_for_each_question(tmp_path: Path) -> None:
    written = draw(results(), LOADS, tmp_path)
    assert [path.name for path in written] == ["loads.png", "levels.png", "latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert draw(Results(), LOADS, tmp_path) == []
