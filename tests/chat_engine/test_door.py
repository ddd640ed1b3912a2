"""What every engine does at its door: the one that computes, and one of coroutines that only repeats."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

import pytest

from chat_engine.errors import DrainingError, EngineFailedError, OverloadedError, RequestCancelledError
from chat_engine.native.engine import NativeEngine
from chat_engine.protocol import Engine
from chat_engine.request import ChatRequest, FinishReason
from chat_engine.service import door as door_module
from chat_engine.service.model_thread import ModelThread
from tests.chat_engine.builders import WAIT, Gate, HashRunner, Inbox, letter_tokenizer, make_config, make_request
from tests.chat_engine.echo_engine import EchoEngine, echoed

LENGTH, CANCELLED, ERROR = FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.ERROR


class BrokenError(RuntimeError):
    """What the GPU says."""


class Steps(Protocol):
    before_step: Callable[[list[object]], None]


@dataclass
class Opened:
    """An engine, what makes its steps, and what it answers."""

    engine: Engine
    steps: Steps
    answer: Callable[[ChatRequest], str]

    def waiter(self) -> tuple[threading.Thread, list[bool]]:
        """Somebody who waits for room, and what they are told."""
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(self.engine.wait_for_room(WAIT)))
        thread.start()
        return thread, told


def native(on_failure: Callable[[], None] | None, **settings: object) -> Opened:
    runner, tokenizer = HashRunner(), letter_tokenizer()
    engine = NativeEngine(make_config(**settings), runner, tokenizer, on_failure, ModelThread())
    return Opened(engine, runner, lambda request: tokenizer.decode(runner.answer(request)))


def echo(on_failure: Callable[[], None] | None, **settings: object) -> Opened:
    engine = EchoEngine(make_config(**settings), on_failure)
    return Opened(engine, engine, echoed)


@pytest.fixture(params=[native, echo], ids=["native", "echo"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[..., Opened]]:
    """Opens engines, and closes them at the end."""
    made: list[Opened] = []

    def open_(on_failure: Callable[[], None] | None = None, **settings: object) -> Opened:
        made.append(request.param(on_failure, **settings))
        return made[-1]

    yield open_
    for one in made:
        one.engine.close()


@pytest.fixture
def held(opened: Callable[..., Opened]) -> Callable[..., tuple[Opened, Gate]]:
    """Opens engines whose steps wait."""

    def open_(**settings: object) -> tuple[Opened, Gate]:
        one = opened(**settings)
        return one, Gate(one.steps)

    return open_


Held = Callable[..., tuple[Opened, Gate]]


# Answers.


def test_an_answer_comes_in_events_of_which_the_last_says_why_it_ends(opened: Callable[..., Opened]) -> None:
    one, inbox, request = opened(), Inbox(), make_request("r", max_tokens=5)
    one.engine.submit(request, inbox)
    assert inbox.ended.wait(WAIT)
    assert (inbox.text, inbox.output, inbox.last.finish_reason) == (one.answer(request), 5, LENGTH)
    assert [event.num_output_tokens for event in inbox.events] == [1, 2, 3, 4, 5]


def test_two_requests_of_one_id_are_a_mistake_of_the_caller_inside(held: Held) -> None:
    one, gate = held()
    one.engine.submit(make_request("r"), Inbox())
    with pytest.raises(AssertionError):
        one.engine.submit(make_request("r"), Inbox())
    gate.open()


# Room.


def test_a_full_engine_refuses_and_says_how_many_run(held: Held) -> None:
    one, gate = held(max_sequences=2)
    one.engine.submit(make_request("1"), Inbox())
    one.engine.submit(make_request("2"), Inbox())
    with pytest.raises(OverloadedError, match="2 requests are running"):
        one.engine.submit(make_request("3"), Inbox())
    assert not one.engine.wait_for_room(0)
    gate.open()


def test_queue_room_lets_some_wait(held: Held) -> None:
    one, gate = held(max_sequences=1, queue_room=2)
    inboxes = [Inbox() for _ in range(3)]
    for i, inbox in enumerate(inboxes):
        one.engine.submit(make_request(f"r{i}"), inbox)
    with pytest.raises(OverloadedError):
        one.engine.submit(make_request("more"), Inbox())
    gate.open()
    assert all(inbox.ended.wait(WAIT) for inbox in inboxes)


def test_waiting_for_room_ends_when_a_request_ends(held: Held) -> None:
    one, gate = held(max_sequences=1)
    inbox = Inbox()
    one.engine.submit(make_request("r", max_tokens=1), inbox)
    gate.reached()
    assert not one.engine.wait_for_room(0)
    waiter, told = one.waiter()
    gate.open()
    waiter.join(WAIT)
    assert told == [True]
    assert inbox.ended.wait(WAIT)


def test_there_is_room_as_soon_as_the_caller_hears_of_an_end(opened: Callable[..., Opened]) -> None:
    one, room = opened(max_sequences=1), []
    heard = threading.Event()

    def sink(event: object) -> None:
        room.append(one.engine.wait_for_room(0))
        heard.set()

    one.engine.submit(make_request("r", max_tokens=1), sink)
    assert heard.wait(WAIT)
    assert room == [True]


@pytest.mark.parametrize("end", ["drain", "close"])
def test_waiting_for_room_ends_when_there_will_never_be_any(held: Held, end: str) -> None:
    one, gate = held(max_sequences=1)
    one.engine.submit(make_request("r", max_tokens=50), Inbox())
    gate.reached()
    waiter, told = one.waiter()
    ender = threading.Thread(target=(lambda: one.engine.drain(0)) if end == "drain" else one.engine.close)
    ender.start()
    waiter.join(WAIT)
    assert told == [True], "it says why, when `submit` is called"
    with pytest.raises(DrainingError):
        one.engine.submit(make_request("late"), Inbox())
    gate.open()
    ender.join(WAIT)


def test_no_request_is_lost_when_many_threads_submit(opened: Callable[..., Opened]) -> None:
    one = opened(max_sequences=3)
    inboxes: dict[str, tuple[ChatRequest, Inbox]] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        for i in range(15):
            request, inbox = make_request(f"{number}-{i}", prompt=[number + 3, i + 3], max_tokens=6), Inbox()
            with lock:
                inboxes[request.id] = request, inbox
            while True:
                assert one.engine.wait_for_room(WAIT)
                try:
                    one.engine.submit(request, inbox)
                except OverloadedError:
                    continue
                break
            if i % 5 == 4:
                one.engine.cancel(request.id)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert one.engine.drain(WAIT)
    one.engine.close()
    assert len(inboxes) == 60
    for request, inbox in inboxes.values():
        if inbox.last.finish_reason is not CANCELLED:
            assert inbox.text == one.answer(request)
    assert one.engine.stats().finished.total() == 60


# Cancelling.


def test_a_cancelled_request_ends_and_makes_room(held: Held) -> None:
    one, gate = held(max_sequences=1)
    inbox = Inbox()
    one.engine.submit(make_request("r", max_tokens=20), inbox)
    gate.reached()
    one.engine.cancel("r")
    gate.open()
    assert one.engine.wait_for_room(WAIT)
    assert inbox.ended.wait(WAIT)
    assert inbox.last.finish_reason is CANCELLED
    assert isinstance(inbox.last.error, RequestCancelledError)


def test_cancelling_late_or_a_stranger_does_nothing(opened: Callable[..., Opened]) -> None:
    one, first, second = opened(), Inbox(), Inbox()
    one.engine.cancel("stranger")
    for inbox in (first, second):
        one.engine.submit(make_request("r", max_tokens=2), inbox)
        assert inbox.ended.wait(WAIT)
        one.engine.cancel("r")
    assert [inbox.last.finish_reason for inbox in (first, second)] == [LENGTH, LENGTH]


# Failure.


@pytest.mark.steps_fail
def test_a_failing_step_ends_everything_once_and_closes_the_door(opened: Callable[..., Opened]) -> None:
    failed, failures = threading.Event(), []

    def on_failure() -> None:
        failures.append(1)
        failed.set()

    one = opened(on_failure, max_sequences=2, queue_room=2)
    gate, inboxes = Gate(one.steps), [Inbox() for _ in range(4)]
    one.engine.submit(make_request("0", max_tokens=50), inboxes[0])
    gate.reached()

    def fail(rows: list[object]) -> None:
        raise BrokenError("CUDA error at 0x7f00deadbeef in /usr/lib/libcuda.so")

    one.steps.before_step = fail
    for i in range(1, 4):  # these have not been taken in when the next step fails
        one.engine.submit(make_request(str(i)), inboxes[i])
    gate.open()
    for inbox in inboxes:
        assert inbox.ended.wait(WAIT)
        assert inbox.last.finish_reason is ERROR
        assert isinstance(inbox.last.error, EngineFailedError)
        assert "0x7f" not in str(inbox.last.error)
        assert "/usr" not in str(inbox.last.error)
    assert failed.wait(WAIT)
    assert not one.engine.is_ready()
    assert one.engine.wait_for_room(0), "nobody waits for a broken engine"
    with pytest.raises(EngineFailedError):
        one.engine.submit(make_request("late"), Inbox())
    assert one.engine.drain(0)
    one.engine.close()
    assert failures == [1]
    assert [len(inbox.ends) for inbox in inboxes] == [1] * 4
    assert one.engine.stats().finished == Counter({ERROR: 4})


@pytest.mark.steps_fail
def test_a_failure_wakes_those_who_wait_for_room(held: Held) -> None:
    one, gate = held(max_sequences=1)
    one.engine.submit(make_request("r", max_tokens=50), Inbox())
    gate.reached()
    waiter, told = one.waiter()
    one.steps.before_step = None  # calling it fails
    gate.open()
    waiter.join(WAIT)
    assert told == [True]


def test_a_sink_that_fails_does_not_keep_the_others_from_hearing_of_the_failure(opened: Callable[..., Opened]) -> None:
    failed, other = threading.Event(), Inbox()
    one = opened(failed.set)
    gate = Gate(one.steps)

    def broken_sink(event: object) -> None:
        raise BrokenError("the mailbox is full")

    one.engine.submit(make_request("bad"), broken_sink)
    one.engine.submit(make_request("good"), other)
    gate.open()
    assert failed.wait(WAIT)
    assert other.ended.wait(WAIT)
    assert len(other.ends) == 1


# Draining and closing.


def test_draining_lets_running_answers_end_and_refuses_new_ones(held: Held) -> None:
    one, gate = held()
    inbox = Inbox()
    one.engine.submit(make_request("r", max_tokens=10), inbox)
    gate.reached()
    assert one.engine.is_ready()
    assert not one.engine.drain(0)
    assert not one.engine.is_ready()
    with pytest.raises(DrainingError):
        one.engine.submit(make_request("late"), Inbox())
    gate.open()
    assert one.engine.drain(WAIT)
    one.engine.close()
    assert inbox.last.finish_reason is LENGTH


def test_draining_an_idle_engine_takes_no_time(opened: Callable[..., Opened]) -> None:
    assert opened().engine.drain(0)


def test_closing_ends_what_still_runs_with_an_error(held: Held) -> None:
    one, gate = held(max_sequences=1, queue_room=1)
    inboxes = [Inbox(), Inbox()]
    one.engine.submit(make_request("1", max_tokens=50), inboxes[0])
    gate.reached()
    one.engine.submit(make_request("2", max_tokens=50), inboxes[1])
    closer = threading.Thread(target=one.engine.close)
    closer.start()
    assert one.engine.wait_for_room(WAIT)  # closing has begun
    gate.open()
    closer.join(WAIT)
    assert not closer.is_alive()
    for inbox in inboxes:
        assert inbox.last.finish_reason is ERROR
        assert isinstance(inbox.last.error, DrainingError)
    one.engine.close()
    assert [len(inbox.ends) for inbox in inboxes] == [1, 1]


# Readiness and numbers.


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now + 1e9)
        monkeypatch.setattr(door_module, "time", fake)


def test_an_engine_that_makes_no_step_is_not_ready(monkeypatch: pytest.MonkeyPatch, held: Held) -> None:
    clock = Clock(monkeypatch)
    one, gate = held(stall_seconds=60.0)
    inbox = Inbox()
    one.engine.submit(make_request("r", max_tokens=5), inbox)
    gate.reached()
    clock.now += 60
    assert one.engine.is_ready()
    clock.now += 1
    assert not one.engine.is_ready()
    gate.pass_one()
    gate.reached()
    assert one.engine.is_ready()
    gate.open()
    assert inbox.ended.wait(WAIT)


def test_an_idle_engine_is_no_stall_and_neither_is_its_first_request(
    monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    clock = Clock(monkeypatch)
    one, gate = held(stall_seconds=60.0)
    clock.now += 1000
    assert one.engine.is_ready(), "an idle engine makes no steps"
    one.engine.submit(make_request("r"), Inbox())
    assert one.engine.is_ready()
    assert one.engine.stats().last_step == clock.now + 1e9, "nor does it look like one from outside"
    gate.open()


def test_more_requests_do_not_hide_a_stall(monkeypatch: pytest.MonkeyPatch, held: Held) -> None:
    clock = Clock(monkeypatch)
    one, gate = held(stall_seconds=60.0)
    one.engine.submit(make_request("1"), Inbox())
    gate.reached()
    clock.now += 50
    one.engine.submit(make_request("2"), Inbox())
    clock.now += 11
    assert not one.engine.is_ready()
    gate.open()


def test_by_default_the_limit_of_a_stall_follows_the_engines_own_steps(
    monkeypatch: pytest.MonkeyPatch, held: Held
) -> None:
    clock = Clock(monkeypatch)
    one, gate = held()
    inbox = Inbox()
    one.engine.submit(make_request("r", max_tokens=5), inbox)
    for seconds in (0.4, 1.0):  # the longest counts
        gate.reached()
        clock.now += seconds
        gate.pass_one()
    gate.reached()
    clock.now += 20
    assert one.engine.complaint() is None
    clock.now += 1
    assert one.engine.complaint() == "the engine has made no step for 21 s"
    assert not one.engine.is_ready()
    one.engine.note_pause()
    assert one.engine.complaint() is None
    gate.open()
    assert inbox.ended.wait(WAIT)


def test_an_engine_that_is_given_up_takes_nothing_more(held: Held) -> None:
    one, gate = held()
    one.engine.submit(make_request("1"), Inbox())
    gate.reached()
    assert one.engine.complaint() is None
    one.engine.give_up()
    assert one.engine.complaint() == "the engine failed"
    assert not one.engine.is_ready()
    with pytest.raises(EngineFailedError):
        one.engine.submit(make_request("2"), Inbox())
    gate.open()


def test_the_numbers_add_up(held: Held) -> None:
    one, gate = held()
    inboxes = [Inbox(), Inbox()]
    before = one.engine.stats()
    assert (before.steps, before.running, before.waiting, before.last_step) == (0, 0, 0, 0.0)
    one.engine.submit(make_request("1", prompt=[9] * 10, max_tokens=4), inboxes[0])
    gate.reached()
    one.engine.submit(make_request("2", prompt=[8] * 6, max_tokens=2), inboxes[1])
    during = one.engine.stats()
    assert during.waiting == 1, "what has not been taken in waits"
    assert during.prompt_tokens == 0, "counted when a request ends"
    gate.open()
    assert all(inbox.ended.wait(WAIT) for inbox in inboxes)
    one.engine.close()
    after = one.engine.stats()
    assert (after.running, after.waiting, after.generation_tokens, after.prompt_tokens) == (0, 0, 6, 16)
    assert after.finished == Counter({LENGTH: 2})
    assert len(after.times) == 2


def test_times_are_handed_out_once_and_in_order(opened: Callable[..., Opened]) -> None:
    one, inbox = opened(), Inbox()
    one.engine.submit(make_request("r", max_tokens=3), inbox)
    assert inbox.ended.wait(WAIT)
    (times,) = one.engine.stats().times
    assert 0 <= times.queue <= times.first_token <= times.total
    assert times.per_output_token >= 0
    assert one.engine.stats().times == []


def test_a_reading_is_a_copy(opened: Callable[..., Opened]) -> None:
    one, inbox = opened(), Inbox()
    one.engine.submit(make_request("r", max_tokens=3), inbox)
    assert inbox.ended.wait(WAIT)
    one.engine.close()
    reading = one.engine.stats()
    steps = reading.steps
    reading.finished[ERROR] += 5
    reading.steps += 99
    assert one.engine.stats().finished[ERROR] == 0
    assert one.engine.stats().steps == steps
