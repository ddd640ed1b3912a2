from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chat_engine.native.kv_cache import KVCache
from chat_engine.native.scheduler import Chunk, Pace, Scheduler, StepLimit
from chat_engine.native.sequence import Sequence
from tests.chat_engine.builders import examples, make_request


class Bench:
    """A scheduler with a model that computes nothing: tokens are counters, answers have the length asked for."""

    def __init__(
        self,
        blocks: int = 32,
        size: int = 4,
        places: int = 4,
        budget: int = 8,
        caching: bool = True,
        at_once: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.cache = KVCache(blocks, size, caching)
        self.scheduler = Scheduler(self.cache, places, budget, at_once, pace=pace)
        self.places, self.budget, self.at_once = places, budget, at_once or budget
        self.finished: list[Sequence] = []
        self.scored: dict[Sequence, list[int]] = {}  # places whose logits were taken, in order
        self.added = 0

    def add(self, prompt: list[int] | int, answer: int = 4, top: int | None = None) -> Sequence:
        tokens = [1000 * (self.added + 1) + i for i in range(prompt)] if isinstance(prompt, int) else prompt
        sequence = Sequence(make_request(f"r{self.added}", tokens, max_tokens=answer, prompt_logprobs=top))
        self.added += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        """One step, and all that must be true of any step."""
        decoding = [s for s in self.scheduler.running if not s.is_prefilling]
        preempted = self.scheduler.preemptions
        arrival = {s: i for i, s in enumerate(self.scheduler.sequences)}
        chunks = self.scheduler.schedule()
        self.check()
        assert sum(chunk.count for chunk in chunks) <= self.scheduler.step_limit.tokens <= self.budget
        assert sum(len(chunk.scored) for chunk in chunks) <= self.at_once
        assert len(self.scheduler.running) <= self.places
        assert len({chunk.sequence for chunk in chunks}) == len(chunks), "a sequence runs twice in a step"
        scheduled = {chunk.sequence for chunk in chunks}
        for sequence in decoding:
            assert sequence in scheduled or self.scheduler.preemptions > preempted, "a decode was starved"
            assert sequence in scheduled or sequence not in self.scheduler.running
        for chunk in chunks:
            assert 1 <= chunk.count <= chunk.sequence.num_uncomputed
            assert chunk.sequence in self.scheduler.running
            room = len(chunk.sequence.table.blocks) * self.cache.block_size
            assert chunk.sequence.num_computed + chunk.count <= room, "a chunk has no place for its KV"
        order = [arrival[s] for s in self.scheduler.running]
        assert order == sorted(order), "somebody was overtaken"
        assert bool(chunks) == bool(arrival), "nothing runs although somebody waits"
        for chunk in chunks:
            samples, scored = chunk.samples, [*chunk.scored]
            assert set(scored) <= set(range(chunk.sequence.num_computed, chunk.sequence.num_computed + chunk.count))
            self.scored[chunk.sequence] = self.scored.get(chunk.sequence, []) + scored
            self.scheduler.advance(chunk)
            if samples:
                self._append(chunk.sequence)
        self.check()
        return chunks

    def run_out(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.step():
                break
        else:
            raise AssertionError("no end")
        assert self.cache.used == 0
        assert not self.scheduler.sequences

    def check(self) -> None:
        self.cache.check([s.table for s in self.scheduler.sequences])

    def _append(self, sequence: Sequence) -> None:
        asked = sequence.request.sampling.prompt_logprobs is not None
        assert self.scored[sequence] == [*range(sequence.num_prompt - 1 if asked else 0)]
        sequence.tokens.append(sequence.num_output)
        if sequence.num_output == sequence.request.max_tokens:
            self.scheduler.remove(sequence)
            self.finished.append(sequence)


def counts(chunks: list[Chunk]) -> dict[str, int]:
    return {chunk.sequence.request.id: chunk.count for chunk in chunks}


def test_nothing_to_do_is_an_empty_step() -> None:
    assert Bench().step() == []


def test_a_prompt_is_prefilled_in_chunks_of_the_budget() -> None:
    bench = Bench(budget=8)
    bench.add(20)
    assert [counts(bench.step()) for _ in range(4)] == [{"r0": 8}, {"r0": 8}, {"r0": 4}, {"r0": 1}]


def test_only_the_chunk_that_reaches_the_end_samples() -> None:
    bench = Bench(budget=8)
    bench.add(12)
    first = bench.scheduler.schedule()[0]
    assert not first.samples
    bench.scheduler.advance(first)
    assert bench.scheduler.schedule()[0].samples


def test_decodes_come_before_prefills_and_share_the_budget() -> None:
    bench = Bench(budget=8)
    bench.add(4, answer=10)
    bench.step()
    bench.add(20)
    assert list(counts(bench.step()).items()) == [("r0", 1), ("r1", 7)]


def test_a_long_prompt_does_not_stall_running_streams() -> None:
    bench = Bench(blocks=200, budget=8)
    streams = [bench.add(4, answer=60) for _ in range(3)]
    for _ in range(3):
        bench.step()
    bench.add(200)
    for _ in range(40):
        before = [s.num_output for s in streams]
        bench.step()
        assert [s.num_output for s in streams] == [n + 1 for n in before]


def test_what_is_left_of_the_budget_goes_to_the_next_prompt() -> None:
    bench = Bench(budget=8)
    bench.add(5)
    bench.add(5)
    assert counts(bench.step()) == {"r0": 5, "r1": 3}


def test_newcomers_wait_for_a_place_in_order_of_arrival() -> None:
    bench = Bench(places=2)
    for _ in range(4):
        bench.add(4, answer=3)
    bench.run_out()
    assert [s.request.id for s in bench.finished] == ["r0", "r1", "r2", "r3"]


def test_a_small_request_does_not_overtake_a_large_one_that_lacks_blocks() -> None:
    bench = Bench(blocks=8, size=4, budget=32)
    bench.add(16, answer=4)
    bench.step()
    large, small = bench.add(20), bench.add(2)
    bench.step()
    assert list(bench.scheduler.waiting) == [large, small]


def test_a_newcomer_is_not_let_in_where_it_would_push_out_what_runs() -> None:
    bench = Bench(blocks=4, size=4, budget=32)
    bench.add(7, answer=8)
    bench.step()
    newcomer = bench.add(8)
    bench.step()
    assert newcomer in bench.scheduler.waiting, "the block that the first needs next must stay free"
    bench.run_out()
    assert bench.scheduler.preemptions == 0


def test_the_youngest_makes_room_and_finishes_later() -> None:
    bench = Bench(blocks=6, size=4, places=3, budget=32)
    old, young = bench.add(8, answer=12), bench.add(8, answer=12)
    while bench.scheduler.preemptions == 0:
        bench.step()
    assert bench.scheduler.running == [old]
    assert list(bench.scheduler.waiting) == [young]
    assert young.num_computed == 0
    assert not young.table.blocks
    bench.run_out()
    assert bench.finished == [old, young]
    assert young.num_output == 12


def test_a_preempted_sequence_comes_back_before_those_that_wait() -> None:
    bench = Bench(blocks=6, size=4, places=2, budget=32)
    bench.add(8, answer=12)
    young = bench.add(8, answer=12)
    last = bench.add(4, answer=1)
    while bench.scheduler.preemptions == 0:
        bench.step()
    assert list(bench.scheduler.waiting) == [young, last]


def test_a_prefix_in_the_cache_is_not_computed_again() -> None:
    bench = Bench(budget=32)
    prompt = list(range(10))
    bench.add(prompt, answer=1)
    bench.run_out()
    second = bench.add([*prompt, 50, 51], answer=1)
    assert counts(bench.step()) == {"r1": 4}
    assert second.num_cached == 8


def test_own_blocks_found_again_after_preemption_do_not_count_as_cached() -> None:
    """`num_cached` says what the prefix cache gave at first; work done twice is not a gift."""
    bench = Bench(blocks=9, size=4, places=2, budget=2)
    bench.add(4, answer=24)
    bench.step()
    bench.step()
    young = bench.add(20, answer=1)
    while bench.scheduler.preemptions == 0:
        bench.step()
        if young.num_output:
            pytest.fail("the prompt was done before it was put back")
    bench.run_out()
    assert young.num_cached == 0


def test_logits_of_prompts_have_a_limit_of_their_own() -> None:
    bench = Bench(budget=20, at_once=5)
    bench.add(12, top=0)
    bench.add(9, top=0)
    bench.add(10)
    assert counts(bench.step()) == {"r0": 5, "r2": 10}
    assert counts(bench.step()) == {"r2": 1, "r0": 5}
    assert counts(bench.step()) == {"r2": 1, "r0": 2, "r1": 4}, "the last token of a prompt scores nothing"
    assert counts(bench.step()) == {"r2": 1, "r0": 1, "r1": 5}
    bench.run_out()


def test_cached_blocks_are_not_taken_for_tokens_that_are_to_be_scored() -> None:
    bench = Bench(budget=32)
    prompt = list(range(10))
    bench.add(prompt, answer=1)
    bench.run_out()
    scoring = bench.add([*prompt, 50, 51], answer=1, top=0)
    assert counts(bench.step()) == {"r1": 12}
    assert scoring.num_cached == 0
    bench.add([*prompt, 50, 51], answer=1)
    assert counts(bench.step()) == {"r2": 4}, "but it leaves its own to others"


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
def test_removing_frees_blocks_wherever_the_sequence_stands(running: bool) -> None:
    bench = Bench(places=1)
    bench.add(4, answer=9)
    bench.add(4)
    bench.step()
    bench.scheduler.remove(bench.scheduler.sequences[0 if running else 1])
    bench.check()
    assert len(bench.scheduler.sequences) == 1
    bench.run_out()


def test_one_sequence_may_fill_the_whole_cache() -> None:
    bench = Bench(blocks=4, size=4, places=4, budget=4)
    bench.add(3, answer=13)
    bench.add(15, answer=1)
    bench.run_out()
    assert bench.scheduler.preemptions <= 1


@dataclass(frozen=True)
class Shape:
    """Of a machine's scheduler; the longest sequence just fits into its cache."""

    blocks: int
    size: int
    places: int
    budget: int
    caching: bool

    @property
    def longest(self) -> int:
        return self.blocks * self.size


SHAPES = st.builds(
    lambda blocks, size, places, extra, caching: Shape(blocks, size, places, places + extra, caching),
    st.integers(2, 12), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9), st.booleans(),
)  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and are cancelled at any time, and memory runs short; `Bench.step` checks each step."""

    @initialize(shape=SHAPES, at_once=st.integers(1, 9))
    def begin(self, shape: Shape, at_once: int) -> None:
        self.shape = shape
        self.bench = Bench(shape.blocks, shape.size, shape.places, shape.budget, shape.caching, at_once)
        self.cancelled = 0

    @rule(
        letters=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        wanted=st.integers(1, 40),
        top=st.sampled_from([None, 0]),
    )
    def arrive(self, letters: list[int], wanted: int, top: int | None) -> None:
        prompt = letters[: self.shape.longest - 1]
        self.bench.add(prompt, min(wanted, self.shape.longest - len(prompt)), top)

    @precondition(lambda self: self.bench.scheduler.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.bench.scheduler.remove(data.draw(st.sampled_from(self.bench.scheduler.sequences)))
        self.cancelled += 1

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.bench.step()

    @rule(tokens=st.integers(1, 60))
    def run_short_of_memory(self, tokens: int) -> None:
        self.bench.scheduler.step_limit.note_in_parts(tokens)

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "bench"):
            self.bench.check()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.run_out()
            assert len(self.bench.finished) + self.cancelled == self.bench.added
            assert len(set(self.bench.finished)) == len(self.bench.finished)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = examples(200, stateful_step_count=30)


@examples(100)
@given(SHAPES, st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=25))
def test_everything_ends_and_the_oldest_always_moves(shape: Shape, wishes: list[tuple[int, int]]) -> None:
    bench = Bench(shape.blocks, shape.size, shape.places, shape.budget, shape.caching)
    for prompt, answer in wishes:
        prompt = min(prompt, shape.longest - 1)
        bench.add(prompt, min(answer, shape.longest - prompt))
    while bench.scheduler.sequences:
        oldest = bench.scheduler.sequences[0]
        before = oldest.num_computed
        bench.step()
        assert oldest in bench.finished or oldest.num_computed > before, "the oldest stands still"
    assert len(bench.finished) == len(wishes)


# As many tokens of prompts as running answers can wait for.


def test_beside_decodes_a_step_has_as_many_tokens_of_prompts_as_take_no_longer_than_may_be() -> None:
    bench = Bench(blocks=2000, budget=512, pace=Pace(0.25, token_seconds=0.001))
    bench.add(1000)
    assert [counts(bench.step()) for _ in range(3)] == [{"r0": 512}, {"r0": 488}, {"r0": 1}], "nobody waits"
    bench.add(200)
    assert counts(bench.step()) == {"r0": 1, "r1": 200}
    bench.add(1000)
    assert counts(bench.step()) == {"r0": 1, "r1": 1, "r2": 250}


def test_a_step_lasts_longer_where_more_wait_for_their_first_token_than_read_answers() -> None:
    bench = Bench(blocks=2000, budget=512, pace=Pace(0.2, token_seconds=0.001))
    bench.add(100)
    bench.step()
    bench.add(300)
    bench.add(300)
    assert counts(bench.step()) == {"r0": 1, "r1": 300, "r2": 100}, "two wait for one"
    assert counts(bench.step()) == {"r0": 1, "r1": 1, "r2": 200}, "one waits for two"


def test_those_for_whom_there_is_no_place_do_not_count_as_waiting() -> None:
    bench = Bench(blocks=2000, budget=512, places=2, pace=Pace(0.25, token_seconds=0.001))
    bench.add(100)
    bench.step()
    for _ in range(5):
        bench.add(400)
    assert counts(bench.step()) == {"r0": 1, "r1": 250}


def settled(pace: Pace, token: float, step: float) -> int:
    """Its tokens once it has seen some steps of a model that takes `token` for one of a prompt, and `step` anyway."""
    for _ in range(20):
        tokens = pace.tokens(1, 1) or 1000
        pace.note(tokens, step + token * tokens)
        pace.note(0, step)
    return pace.tokens(1, 1) or 0


@pytest.mark.parametrize("first", [0.0, 0.00001, 1.0])
def test_the_pace_follows_what_steps_take(first: float) -> None:
    pace = Pace(0.25, first)
    assert settled(pace, token=0.001, step=0.03) == pytest.approx(220, abs=3)
    assert settled(pace, token=0.002, step=0.03) == pytest.approx(110, abs=3), "a long context"
    assert settled(pace, token=0.000_01, step=0.01) > 20_000
    assert settled(pace, token=1.0, step=0.03) == 64, "it goes on"
    assert settled(pace, token=0.01, step=1.0) == pytest.approx(300, abs=3), "4 s, where a decode takes one"


def test_a_small_chunk_says_nothing_of_the_pace() -> None:
    pace = Pace(0.25, 0.001)
    pace.note(2, 0.03)
    assert pace.tokens(1, 1) == 250


def test_without_a_limit_every_step_is_whole() -> None:
    pace = Pace(0, 0.001)
    pace.note(100, 10.0)
    assert pace.tokens(1, 1) is None


# Fewer tokens a step, for a while.


def test_a_step_limit_halves_down_to_the_least_and_grows_back() -> None:
    limit = StepLimit(most=100, least=30)
    limit.note_in_parts(90)
    assert limit.tokens == 45
    limit.note_in_parts(45)
    assert limit.tokens == 30
    sizes = []
    for _ in range(4 * 256):
        limit.note_whole()
        sizes.append(limit.tokens)
    assert sizes[254:256] == [30, 60]
    assert sizes[510:512] == [60, 100]
    assert max(sizes) == sizes[-1] == 100


def test_a_failure_starts_the_wait_anew() -> None:
    limit = StepLimit(most=100, least=1)
    limit.note_in_parts(100)
    for _ in range(255):
        limit.note_whole()
    limit.note_in_parts(50)
    limit.note_whole()
    assert limit.tokens == 25


@examples(100)
@given(events=st.lists(st.one_of(st.none(), st.integers(1, 64)), max_size=50), most=st.integers(4, 64))
def test_a_step_limit_stays_within_its_bounds(events: list[int | None], most: int) -> None:
    limit = StepLimit(most, least=4)
    for event in events:
        if event is None:
            for _ in range(256):
                limit.note_whole()
        else:
            before = limit.tokens
            limit.note_in_parts(min(event, before))
            assert limit.tokens <= before
        assert 4 <= limit.tokens <= most
