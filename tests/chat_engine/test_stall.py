"""When something takes so long that it will never end."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

import chat_engine.service.stall as stall_module
from chat_engine.service.stall import InHand, StallWatch, stall_seconds

WAIT = 10.0


@pytest.mark.parametrize(
    ("longest", "steps", "limit"),
    [
        (0.0, 100, 5.0),
        (0.2, 100, 5.0),
        (0.5, 100, 10.0),
        (3.0, 100, 60.0),
        (60.0, 100, 120.0),
        (0.2, 99, 20.0),
        (3.0, 1, 60.0),
    ],
)
def test_the_limit_follows_the_longest_that_was_seen(longest: float, steps: int, limit: float) -> None:
    assert stall_seconds(longest, steps) == limit


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stall_module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class TestInHand:
    def test_idleness_is_no_reason_to_complain(self, clock: Clock) -> None:
        in_hand = InHand()
        clock.now += 1000
        assert in_hand.complaint() is None

    def test_the_oldest_piece_counts(self, clock: Clock) -> None:
        in_hand = InHand()
        with in_hand.work():
            clock.now += 890
            with in_hand.work():
                clock.now += 10
                assert in_hand.complaint() is None
                assert not in_hand.is_empty()
                clock.now += 1
                assert in_hand.complaint() == "it has worked at a request for 901 s"
        assert in_hand.complaint() is None
        assert in_hand.is_empty()

    def test_one_that_fails_is_no_longer_in_hand(self, clock: Clock) -> None:
        in_hand = InHand()
        with pytest.raises(RuntimeError), in_hand.work():
            raise RuntimeError
        clock.now += 1000
        assert in_hand.complaint() is None


class Watched:
    """Looked at by a `StallWatch` that goes through its rounds as fast as it can."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *complaints: str | None, took_s: float = 0.5) -> None:
        self.left = list(complaints)
        self.pauses = 0
        self.told: list[str] = []
        self.over = threading.Event()
        self._now = 0.0
        self._took_s = took_s
        monkeypatch.setattr(stall_module, "_POLL_SECONDS", 0.001)
        monkeypatch.setattr(stall_module, "time", SimpleNamespace(monotonic=self._clock))
        self._watch = StallWatch(self._complaint, self._note_pause, self.told.append)
        assert self.over.wait(WAIT)
        self._watch.close()

    def _clock(self) -> float:
        self._now += self._took_s
        return self._now

    def _complaint(self) -> str | None:
        complaint = self.left.pop(0)
        if not self.left:
            self.over.set()
            self.left.append(None)
        return complaint

    def _note_pause(self) -> None:
        self.pauses += 1
        self.over.set()


def test_a_stall_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, None, None, "stuck")
    assert (watched.told, watched.pauses) == (["stuck"], 0)


def test_time_in_which_the_process_did_not_run_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, "stuck", took_s=3.0)
    assert watched.told == []
    assert watched.pauses
