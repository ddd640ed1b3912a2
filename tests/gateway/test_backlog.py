"""The early refusal, against a server that is simulated: slots, answers of some seconds, a queue in front."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream.backlog import Backlog, Backlogs, Ticket

LIMIT_S = 5.0
DEFAULT_S = GatewaySettings.model_fields["max_queue_seconds"].default


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backlog(clock: Clock) -> Backlog:
    return Backlog(LIMIT_S, clock)


def served(backlog: Backlog, clock: Clock, number: int, each_s: float) -> None:
    """So many requests, one after the other."""
    for _ in range(number):
        ticket = backlog.enter()
        clock.now += each_s
        ticket.first_token()


class TestEstimate:
    def test_nothing_is_known_at_first(self, backlog: Backlog, clock: Clock) -> None:
        for _ in range(1000):
            backlog.enter()
        clock.now += 60
        assert backlog.wait_s is None
        assert backlog.excess_s == 0

    def test_it_is_those_who_wait_by_the_rate(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 50, 0.5)
        for _ in range(6):
            backlog.enter()
        assert backlog.wait_s == pytest.approx(3.0, rel=0.05)

    def test_time_in_which_nobody_waits_does_not_count(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 50, 0.5)
        clock.now += 3600
        backlog.enter()
        assert backlog.wait_s == pytest.approx(0.5, rel=0.05)

    def test_a_server_that_slows_down_is_noticed(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 50, 0.1)
        backlog.enter()
        clock.now += 10
        assert backlog.wait_s
        assert backlog.wait_s > 0.2

    def test_who_has_a_token_does_not_count(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 20, 0.1)
        tickets = [backlog.enter() for _ in range(100)]
        for ticket in tickets:
            ticket.first_token()
            ticket.first_token()
            ticket.close()
        assert backlog.wait_s == 0

    def test_a_burst_after_quiet_times_is_let_in(self, backlog: Backlog, clock: Clock) -> None:
        """One at a time does not show how many a server can take at once."""
        served(backlog, clock, 50, 2.0)
        for _ in range(100):
            assert backlog.excess_s == 0
            backlog.enter()

    def test_long_prompts_are_no_queue(self, backlog: Backlog, clock: Clock) -> None:
        """Every first token takes longer than the limit, and nobody waits for anybody else."""
        served(backlog, clock, 10, 8.0)
        for _ in range(20):
            tickets = [backlog.enter() for _ in range(16)]
            clock.now += 8.0
            assert backlog.excess_s == 0
            for ticket in tickets:
                ticket.first_token()

    def test_too_many(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 50, 0.5)
        for _ in range(30):
            backlog.enter()
        clock.now += 2
        assert 8 < backlog.excess_s < 16

    def test_those_who_leave_make_room_as_a_token_does(self, backlog: Backlog, clock: Clock) -> None:
        """As an editor's completions do, nine of ten of which are outdated before their first token."""
        for count in range(200):
            ticket = backlog.enter()
            clock.now += 0.1
            if count % 10:
                ticket.close(left=True)
            else:
                ticket.first_token()
        for _ in range(10):
            backlog.enter()
        assert backlog.wait_s == pytest.approx(1.0, rel=0.05)

    def test_off(self, clock: Clock) -> None:
        backlog = Backlog(0, clock)
        served(backlog, clock, 50, 0.5)
        for _ in range(1000):
            backlog.enter()
        clock.now += 60
        assert backlog.excess_s == 0

    def test_after_an_outage_it_lets_in_again(self, backlog: Backlog, clock: Clock) -> None:
        served(backlog, clock, 50, 0.5)
        tickets = [backlog.enter() for _ in range(30)]
        clock.now += 300
        assert backlog.excess_s > 0
        for ticket in tickets:
            ticket.close()
        assert backlog.excess_s == 0

    @given(st.lists(st.tuples(st.sampled_from(["enter", "token", "close", "wait"]), st.integers(0, 10))))
    def test_whatever_happens(self, events: list[tuple[str, int]]) -> None:
        clock = Clock()
        backlog = Backlog(LIMIT_S, clock)
        tickets: list[Ticket] = []
        waiting: set[int] = set()
        for kind, number in events:
            if kind == "enter":
                waiting.add(len(tickets))
                tickets.append(backlog.enter())
            elif kind == "wait":
                clock.now += number
            elif tickets:
                index = number % len(tickets)
                waiting.discard(index)
                tickets[index].first_token() if kind == "token" else tickets[index].close()
            assert backlog.excess_s >= 0
            assert (backlog.wait_s is None) or (backlog.wait_s == 0) == (not waiting)


def test_each_model_for_itself() -> None:
    backlogs = Backlogs(LIMIT_S)
    assert backlogs.excess_s("never heard of") == 0
    with backlogs.waiting("a") as ticket:
        ticket.first_token()
    with pytest.raises(ZeroDivisionError), backlogs.waiting("a"):
        raise ZeroDivisionError


@dataclass
class Outcome:
    latencies_s: list[float] = field(default_factory=list)
    num_in_time: int = 0
    num_refused: int = 0


SLOTS, ANSWER_S, PREFILL_S = 16, 4.0, 0.2
CAPACITY = SLOTS / ANSWER_S
RUN_S, WARM_UP_S, PATIENT_S = 600.0, 60.0, 20.0


def overloaded(load: float, limit_s: float) -> Outcome:
    """A server at `load` times what it can do. Its callers have no use for an answer that comes after `PATIENT_S`."""
    chance, clock, outcome = random.Random(7), Clock(), Outcome()
    backlog, order = Backlog(limit_s, clock), itertools.count()
    queue: list[tuple[float, Ticket]] = []
    events: list[tuple[float, int, str, object]] = []
    free, begin = SLOTS, clock.now

    def at(when: float, what: str, about: object = None) -> None:
        heapq.heappush(events, (when, next(order), what, about))

    at(clock.now, "arrives")
    while events:
        clock.now, _, what, about = heapq.heappop(events)
        if what == "arrives":
            if clock.now - begin < RUN_S:
                at(clock.now + chance.expovariate(load * CAPACITY), "arrives")
            if backlog.excess_s > 0:
                outcome.num_refused += 1
            else:
                queue.append((clock.now, backlog.enter()))
        elif what == "token":
            assert isinstance(about, Ticket)
            about.first_token()
        else:
            free += 1
            assert isinstance(about, float)
            if WARM_UP_S < clock.now - begin < RUN_S:
                outcome.latencies_s.append(clock.now - about)
                outcome.num_in_time += clock.now - about < PATIENT_S
        while free and queue:
            free -= 1
            since, ticket = queue.pop(0)
            at(clock.now + PREFILL_S, "token", ticket)
            at(clock.now + chance.uniform(0.5, 1.5) * ANSWER_S, "ends", since)
    return outcome


def test_under_overload_those_who_are_let_in_keep_their_pace() -> None:
    once, twice, four_times = (overloaded(load, DEFAULT_S) for load in (1, 2, 4))
    peak = max(outcome.num_in_time for outcome in (once, twice, four_times))
    for outcome in (twice, four_times):
        assert statistics.median(outcome.latencies_s) < 1.4 * statistics.median(once.latencies_s)
        assert max(outcome.latencies_s) < 1.5 * ANSWER_S + 2.5 * DEFAULT_S
        assert outcome.num_in_time > 0.9 * peak
    assert once.num_refused < 0.1 * len(once.latencies_s)


def test_without_a_limit_they_do_not() -> None:
    assert overloaded(2, 0).num_in_time < 0.2 * overloaded(2, LIMIT_S).num_in_time
