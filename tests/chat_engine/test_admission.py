"""Requests in hand: in order, counted, watched, and no longer than the queue allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from chat_engine.errors import DrainingError, EngineFailedError, OverloadedError, RequestCancelledError
from chat_engine.native.engine import NativeEngine
from chat_engine.request import ChatRequest, FinishReason, TokenEvent
from chat_engine.service import admission as admission_module
from chat_engine.service.admission import Admission, QueueLimit
from chat_engine.service.delivery import Mailbox
from tests.chat_engine.builders import WAIT, Gate, HashRunner, make_request

CANCELLED, ERROR, LENGTH = FinishReason.CANCELLED, FinishReason.ERROR, FinishReason.LENGTH


class Caller:
    """What one request has got."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.request: ChatRequest = make_request(name, max_tokens=2, ignore_eos=True)
        self.mailbox = Mailbox(name, None, False, self._take)  # type: ignore[arg-type]
        self.ended = threading.Event()
        self.last: TokenEvent | None = None
        self._order = order

    def _take(self, mailbox: Mailbox) -> None:
        self.last = mailbox.take()
        self._order.append(self.request.id)
        self.ended.set()

    def end(self) -> TokenEvent:
        assert self.ended.wait(WAIT)
        assert self.last is not None
        return self.last


class Hall:
    """An engine with one place, taken by `first`, whose steps wait; the others are in hand of a thread."""

    def __init__(self, engine: NativeEngine, gate: Gate) -> None:
        self.engine, self.gate = engine, gate
        self.admission = Admission(engine)
        self.order: list[str] = []
        self.first = Caller("first", self.order)
        self.admission.take(self.first.request, self.first.mailbox, 0)
        self._threads: list[threading.Thread] = []

    def in_hand(self, *names: str) -> list[Caller]:
        return self.in_hand_for(**dict.fromkeys(names, 0.0))

    def in_hand_for(self, **seconds: float) -> list[Caller]:
        """Callers by name, and how long each may wait."""
        callers = [Caller(name, self.order) for name in seconds]
        for caller in callers:
            self.admission.take(caller.request, caller.mailbox, seconds[caller.request.id])
        self._threads.append(threading.Thread(target=self.admission.clear))
        self._threads[-1].start()
        return callers

    def cleared(self) -> None:
        for thread in self._threads:
            thread.join(WAIT)
            assert not thread.is_alive()


@pytest.fixture
def hall(threaded: Callable[..., NativeEngine], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.setattr(admission_module, "_ROOM_POLL_SECONDS", 0.001)
    runner = HashRunner()
    gate = Gate(runner)
    hall = Hall(threaded(runner, max_sequences=1), gate)
    yield hall
    gate.open()
    hall.cleared()


def test_who_is_in_hand_counts_as_waiting_and_comes_in_in_order(hall: Hall) -> None:
    hall.gate.reached()
    callers = hall.in_hand("a", "b", "c")
    reading = hall.admission.stats()
    assert (reading.running, reading.waiting) == (1, 3)
    hall.gate.open()
    assert [caller.end().finish_reason for caller in callers] == [LENGTH] * 3
    hall.cleared()
    assert hall.order == ["first", "a", "b", "c"]
    assert hall.admission.stats().waiting == 0


def test_whoever_leaves_is_told_at_once_wherever_he_stands_in_the_group(hall: Hall) -> None:
    hall.gate.reached()
    a, b, c = hall.in_hand("a", "b", "c")
    for leaving in (c, b):
        hall.admission.cancel(leaving.request.id)
        assert leaving.end().finish_reason is CANCELLED
        assert isinstance(leaving.end().error, RequestCancelledError)
    assert not a.ended.is_set()
    hall.gate.open()
    assert a.end().finish_reason is LENGTH
    assert hall.engine.stats().finished[CANCELLED] == 0  # they never came in


def test_who_has_come_in_is_cancelled_by_the_engine(hall: Hall) -> None:
    hall.gate.reached()
    hall.admission.cancel("first")
    hall.gate.open()
    assert hall.first.end().finish_reason is CANCELLED


def test_who_leaves_while_he_is_let_in_is_cancelled_all_the_same(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine does not know him yet when he leaves, and he is no longer looked at."""
    hall.gate.open()
    hall.first.end()
    submit = hall.engine.submit

    def leave_first(request: ChatRequest, sink: Callable[[TokenEvent], None]) -> None:
        hall.admission.cancel(request.id)
        submit(request, sink)

    monkeypatch.setattr(hall.engine, "submit", leave_first)
    cancelled: list[str] = []
    monkeypatch.setattr(hall.engine, "cancel", cancelled.append)
    hall.in_hand("a")
    hall.cleared()
    assert cancelled == ["a", "a"]


def test_nobody_waits_longer_than_the_queue_allows(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(admission_module, "now", lambda: clock[0])
    hall.gate.reached()
    patient, impatient, late = hall.in_hand_for(patient=3.0, impatient=2.0, late=2.1)
    clock[0] += 2.0
    assert isinstance(impatient.end().error, OverloadedError)
    assert "no room within 2 seconds" in str(impatient.end().error)
    assert not patient.ended.is_set()
    assert not late.ended.is_set()


def test_a_request_that_cannot_come_in_ends_alone(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = hall.engine.submit

    def broken_for_a(request: ChatRequest, sink: Callable[[TokenEvent], None]) -> None:
        if request.id == "a":
            raise RuntimeError("a grammar")
        submit(request, sink)

    monkeypatch.setattr(hall.engine, "submit", broken_for_a)
    hall.gate.open()
    a, b = hall.in_hand("a", "b")
    assert isinstance(a.end().error, EngineFailedError)
    assert "grammar" not in str(a.end().error)
    assert b.end().finish_reason is LENGTH


def test_all_are_told_that_the_server_stops(hall: Hall) -> None:
    hall.gate.reached()
    callers = hall.in_hand("a", "b")
    hall.engine.drain(0)
    for caller in callers:
        assert caller.end().finish_reason is ERROR
        assert isinstance(caller.end().error, DrainingError)


@pytest.mark.parametrize(
    ("policy", "own", "seconds"),
    [
        ({}, 1_000_000, 0),
        ({"default_timeout_microseconds": "3000000"}, 1_000_000, 3),
        ({"default_timeout_microseconds": "3000000", "allow_timeout_override": True}, 1_000_000, 1),
        ({"default_timeout_microseconds": "3000000", "allow_timeout_override": True}, 9_000_000, 3),
        ({"default_timeout_microseconds": "3000000", "allow_timeout_override": True}, 0, 3),
        ({"default_timeout_microseconds": "0", "allow_timeout_override": True}, 1_000_000, 0),
    ],
)
def test_the_limit_is_that_of_the_queue(policy: dict[str, object], own: int, seconds: float) -> None:
    """Triton gives the numbers of a configuration as texts."""
    limit = QueueLimit.of({"dynamic_batching": {"default_queue_policy": policy}})
    assert limit.of_request(own) == seconds


def test_a_model_without_a_queue_policy_has_no_limit() -> None:
    assert QueueLimit.of({}).of_request(5) == 0
