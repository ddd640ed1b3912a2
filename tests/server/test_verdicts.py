"""When something is dead or stuck, by what a supervisor sees."""

from __future__ import annotations

import pytest

from triton_chat_server.supervise.heartbeats import Heartbeat
from triton_chat_server.supervise.verdicts import COMPLAINT_S, SILENT_S, UNANSWERED_S, Verdicts

LOOK_S = 0.5


class Watched:
    """A server with one model, seen twice a second."""

    def __init__(self) -> None:
        self.verdicts = Verdicts()
        self.beats = 0
        self.silent = False
        self.complaint = ""
        self.alive = True
        self.answers: bool | None = True

    def look(self, elapsed: float = LOOK_S) -> str | None:
        self.beats += not self.silent
        beat = Heartbeat("chat", 7, self.beats, self.complaint, finished=False)
        return self.verdicts.look(elapsed, [beat], lambda pid: self.alive, self.answers)

    def looks_until_words(self, most: int = 100) -> tuple[int, str]:
        for count in range(1, most):
            if words := self.look():
                return count, words
        raise AssertionError("no verdict")


@pytest.fixture
def watched() -> Watched:
    watched = Watched()
    assert watched.look() is None
    return watched


def test_all_is_well(watched: Watched) -> None:
    assert [watched.look() for _ in range(1000)] == [None] * 1000


def test_a_dead_process_counts_when_it_is_seen_twice(watched: Watched) -> None:
    """One that ends normally removes its file first, which may fall between two glances."""
    watched.alive = False
    assert watched.look() is None
    assert watched.look() == "the process of the model 'chat' is dead"


def test_one_that_is_silent_counts_after_its_time(watched: Watched) -> None:
    watched.silent = True
    count, words = watched.looks_until_words()
    assert words == f"the process of the model 'chat' has sent no heartbeat for {SILENT_S:.0f} s"
    assert count * LOOK_S == SILENT_S


def test_a_complaint_counts_once_it_lasts(watched: Watched) -> None:
    watched.complaint = "the engine failed"
    count, words = watched.looks_until_words()
    assert words == "the model 'chat' does not work: the engine failed"
    assert count * LOOK_S == COMPLAINT_S


def test_a_server_that_answers_no_more_counts_after_its_time(watched: Watched) -> None:
    watched.answers = False
    count, words = watched.looks_until_words()
    assert words == f"tritonserver has not answered for {UNANSWERED_S:.0f} s"
    assert count * LOOK_S == UNANSWERED_S


@pytest.mark.parametrize("answers", [None, False])
def test_a_server_that_never_answered_loads_its_models(answers: bool | None) -> None:
    watched = Watched()
    watched.answers = answers
    assert [watched.look() for _ in range(100)] == [None] * 100


@pytest.mark.parametrize(
    ("sign", "wrong", "right"), [("silent", True, False), ("complaint", "no", ""), ("answers", False, True)]
)
def test_what_passes_is_forgiven(watched: Watched, sign: str, wrong: object, right: object) -> None:
    for _ in range(10):
        setattr(watched, sign, wrong)
        assert [watched.look() for _ in range(3)] == [None] * 3
        setattr(watched, sign, right)
        assert watched.look() is None


def test_a_pause_of_the_whole_machine_is_no_silence(watched: Watched) -> None:
    watched.silent, watched.answers = True, False
    assert watched.look(elapsed=3600.0) is None
    watched.silent, watched.answers = False, True
    assert watched.look() is None


def test_a_model_that_says_goodbye_is_not_missed(watched: Watched) -> None:
    watched.alive = False
    assert watched.verdicts.look(LOOK_S, [], lambda pid: False, True) is None


def test_each_process_counts_for_itself(watched: Watched) -> None:
    for count in range(100):
        beats = [
            Heartbeat("chat", 7, 1000 + count, "", finished=False),
            Heartbeat("tokenizer", 8, 1, "", finished=False),
        ]
        words = watched.verdicts.look(LOOK_S, beats, lambda pid: True, True)
        if words:
            break
    assert words == f"the process of the model 'tokenizer' has sent no heartbeat for {SILENT_S:.0f} s"
