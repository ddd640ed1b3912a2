"""The process of a contender, and what is said of one that breaks down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks.answers import Answer, WrongAnswerError
from benchmarks.contenders import Contender, Given
from benchmarks.doors import Door
from benchmarks.jobs import Job
from benchmarks.loads import Ask, Chats
from benchmarks.peers import MissingError, Workshop
from benchmarks.runner import measure
from benchmarks.setting import SETTINGS, ModelShape
from benchmarks.worker import EndedError, worker

CHATS = Chats("chats-2", "2 chats at once", callers=2)


@dataclass(frozen=True)
class AnswersAtOnce(Door):
    """So many times; then it breaks down."""

    times: int

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Ask]:
        left = self.times

        async def ask(job: Job, answer: Answer) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise WrongAnswerError("no more")
            answer.times = [answer.asked_at + 1.0]
            answer.complete = True

        yield ask


def test_a_load_runs_in_another_process(tmp_path: Path) -> None:
    with worker(AnswersAtOnce(2), tmp_path / "worker.log") as found:
        seen = found.run(CHATS, 1)
        assert [answer.first_token_s for answer in seen.answers] == [1.0, 1.0]
        with pytest.raises(EndedError, match=r"no more \(see .*worker.log\)"):
            found.run(CHATS, 2)


def test_who_cannot_start_or_breaks_down_is_left_out(tmp_path: Path) -> None:
    def missing(given: Given) -> nullcontext[Door]:
        raise MissingError("no compiler")

    workshop = Workshop(tmp_path, tmp_path, set_up=False)
    given = Given(SETTINGS[ModelShape.LLAMA_82M], tmp_path, tmp_path, workshop, tmp_path)
    doors = {"good": AnswersAtOnce(10), "brief": AnswersAtOnce(5)}
    contenders = {
        **{Contender(name, lambda _, door=door: nullcontext(door)): door for name, door in doors.items()},
        Contender("absent", missing): None,
    }
    places = {one: replace(given, folder=tmp_path / one.name) for one in contenders}
    results = measure(places, [[CHATS]] * 4, apart=False)
    assert {name: len(rounds) for name, rounds in results.seen[CHATS.name].items()} == {"good": 3, "brief": 1}
    assert results.failed == ["brief"]
    assert results.left_out["absent"] == "no compiler"
    assert results.left_out["brief"].startswith("while measured with 2 chats at once: ")
    assert "no more" in results.left_out["brief"]
