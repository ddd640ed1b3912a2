"""Clients that do whatever they can: the others get the same answers, and nothing of them stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.faults.callers import Caller, openai_stream, short_answer
from tests.faults.hostile import ACTIONS, Crowd
from tests.faults.kept_stack import KeptStack
from tests.faults.usage import back_to, usage

SOAK_S = float(os.environ.get("SOAK_SECONDS", "20"))
TIMEOUT_S = 240.0


@pytest.mark.timeout(SOAK_S + TIMEOUT_S)
def test_a_crowd_of_bad_clients_leaves_nothing(stack: KeptStack, measured: dict[str, float]) -> None:
    """For SOAK_SECONDS. Each kind of bad client comes, then whichever the dice say."""
    said = short_answer(stack)
    with Crowd(stack, seed=0) as crowd:  # pools of threads and memory take their size
        for action in ACTIONS * 3:
            action(crowd)
    before = back_to(usage(stack), stack)
    answers = wrong = 0
    ends_at = time.monotonic() + SOAK_S
    seed = 1
    while time.monotonic() < ends_at:
        with Crowd(stack, seed) as crowd:
            while time.monotonic() < ends_at and crowd.count < 60:
                crowd.act()
                if crowd.count % 10 == 0:
                    answers += 1
                    wrong += short_answer(stack) != said
            measured["bad clients"] = measured.get("bad clients", 0) + crowd.count
        seed += 1
    measured |= {"answers beside them": answers, "other answers than alone": wrong}
    assert answers
    assert wrong == 0
    after = back_to(before, stack, within=120.0)
    measured["MB more, model chat"] = after.rss_mb["model chat"] - before.rss_mb["model chat"]
    measured["MB more, gateway"] = after.rss_mb["gateway"] - before.rss_mb["gateway"]
    assert short_answer(stack) == said


def test_a_stream_beside_a_crowd_is_the_same_as_alone(stack: KeptStack) -> None:
    def text() -> str:
        pieces = Pieces(stack)
        Caller("openai", pieces.read).begun().finished(120.0)
        return pieces.text

    alone = text()
    with Crowd(stack, seed=7) as crowd:
        pieces = Pieces(stack)
        caller = Caller("openai", pieces.read).begun()
        for action in ACTIONS * 2:
            action(crowd)
        caller.finished(120.0)
    assert pieces.text == alone


class Pieces:
    """The text of a stream, as it comes."""

    def __init__(self, stack: KeptStack) -> None:
        self._url = stack.gateway.openai_url
        self.text = ""

    def read(self) -> Iterator[object]:
        for chunk in openai_stream(self._url):
            self.text += "".join(choice.delta.content or "" for choice in chunk.choices)
            yield chunk
