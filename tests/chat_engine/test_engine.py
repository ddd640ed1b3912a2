from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from chat_engine.answering.telling import Logprobs
from chat_engine.errors import NotComputedError, OverloadedError, RequestCancelledError
from chat_engine.native.engine import NativeEngine
from chat_engine.native.runner import Row
from chat_engine.native.sampler import NO_TOKEN, Sampled
from chat_engine.request import FinishReason
from tests.chat_engine.builders import (
    EOS,
    Done,
    Gate,
    HashRunner,
    Inbox,
    byte_level_tokenizer,
    checked_step,
    examples,
    hand_engine,
    letter_tokenizer,
    make_request,
    run_out,
    solo,
)

TOKENIZER = letter_tokenizer()
STOP, LENGTH, CANCELLED, ERROR = FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED, FinishReason.ERROR


def text_of(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


class Script(HashRunner):
    """Says what it is told to: the answer of a request, token by token, by the first token of its prompt."""

    def __init__(self, answers: dict[int, list[int]], **limits: int) -> None:
        super().__init__(**limits)
        self.answers = answers

    def next_token(self, tokens: list[int]) -> int:
        script = self.answers[tokens[0]]
        return script[len(tokens) - 1]  # prompts have one token


def scripted(answer: list[int], **request: object) -> Inbox:
    engine, inbox = hand_engine(Script({7: answer})), Inbox()
    engine.submit(make_request("r", prompt=[7], **{"max_tokens": len(answer), **request}), inbox)
    run_out(engine)
    return inbox


@pytest.fixture(params=[False, True], ids=["in step", "ahead"], autouse=True)
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the runner starts a step before the tokens of the last are there."""
    monkeypatch.setattr(HashRunner, "runs_ahead", request.param)
    return request.param


# One request.


def test_a_request_gets_its_tokens_one_event_each_and_one_end() -> None:
    runner, request = HashRunner(), make_request("r", max_tokens=5)
    inbox = solo(lambda: hand_engine(runner), request)
    assert [event.text for event in inbox.events] == [text_of([token]) for token in runner.answer(request)]
    assert [event.num_output_tokens for event in inbox.events] == [1, 2, 3, 4, 5]
    assert inbox.last.finish_reason is LENGTH
    assert inbox.last.num_input_tokens == 3
    assert inbox.last.error is None


def test_the_end_of_sequence_token_ends_the_answer_and_is_counted_but_not_shown() -> None:
    inbox = scripted([10, 11, EOS, 12])
    assert (inbox.text, inbox.last.finish_reason, inbox.output) == (text_of([10, 11]), STOP, 3)


def test_ignore_eos_goes_on_to_the_limit() -> None:
    inbox = scripted([10, EOS, 12], ignore_eos=True)
    assert (inbox.text, inbox.last.finish_reason, inbox.output) == (text_of([10, 12]), LENGTH, 3)


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    inbox = scripted([10, 11, 12], stop_token_ids=(11,))
    assert (inbox.text, inbox.last.finish_reason) == (text_of([10]), STOP)


def test_stop_tokens_count_even_where_the_end_of_sequence_does_not() -> None:
    inbox = scripted([EOS, 11, 12], stop_token_ids=(11,), ignore_eos=True)
    assert (inbox.last.finish_reason, inbox.output) == (STOP, 2)


def test_a_stop_string_over_two_tokens_ends_the_answer_before_it() -> None:
    inbox = scripted([10, 11, 12, 13], stop=(text_of([11, 12]),))
    assert (inbox.text, inbox.last.finish_reason, inbox.output) == (text_of([10]), STOP, 3)


def test_held_back_text_comes_with_the_end() -> None:
    inbox = scripted([10, 11], stop=(text_of([11, 12]),))
    assert (inbox.text, inbox.last.finish_reason) == (text_of([10, 11]), LENGTH)
    inbox = scripted([10, 11, EOS], stop=(text_of([11, 12]),))
    assert (inbox.text, inbox.last.finish_reason) == (text_of([10, 11]), STOP)


def test_a_stop_string_in_the_very_last_token_is_a_stop() -> None:
    inbox = scripted([10, 11], stop=(text_of([11]),))
    assert (inbox.text, inbox.last.finish_reason) == (text_of([10]), STOP)


def test_a_stop_string_completed_by_what_was_held_back_is_a_stop_also_at_the_limit() -> None:
    """A character cut off by `max_tokens` becomes U+FFFD, which may be what the caller stops at."""
    tokenizer = byte_level_tokenizer()
    letter, half = (tokenizer.encode(text).ids[0] for text in ("a", "\U0001f600"))
    engine, inbox = hand_engine(Script({7: [letter, half]}, vocab_size=300), tokenizer), Inbox()
    engine.submit(make_request("r", prompt=[7], max_tokens=2, stop=("\ufffd",)), inbox)
    run_out(engine)
    assert (inbox.text, inbox.last.finish_reason) == ("a", STOP)


def test_an_answer_of_one_token() -> None:
    inbox = scripted([10])
    assert (inbox.text, inbox.output, len(inbox.events)) == (text_of([10]), 1, 1)


def test_the_prompt_precedes_the_answer_where_it_is_wanted() -> None:
    engine, inbox = hand_engine(HashRunner()), Inbox()
    request = dataclasses.replace(make_request("r", max_tokens=3), echo="the prompt: ")
    engine.submit(request, inbox)
    run_out(engine)
    assert inbox.text == "the prompt: " + text_of(HashRunner().answer(request))
    assert inbox.events[0].text.startswith("the prompt: ")


def test_logprobs_come_with_their_token_even_when_its_text_is_held_back() -> None:
    class WithLogprobs(Script):
        def run(self, rows: list[Row]) -> list[Sampled | None]:
            return [
                s and Sampled(s.token_id, Logprobs(-0.5, ((s.token_id, -0.5), (9, -2.0)))) for s in super().run(rows)
            ]

    engine, inbox = hand_engine(WithLogprobs({7: [10, 11, EOS]})), Inbox()
    engine.submit(make_request("r", prompt=[7], stop=(text_of([10, 12]),), logprobs=2), inbox)
    run_out(engine)
    entries = [entry for event in inbox.events for entry in event.logprobs]
    assert [entry.chosen.token for entry in entries] == [text_of([10]), text_of([11]), "</s>"]
    assert entries[0].chosen.bytes == text_of([10]).encode()
    assert [(entry.top[0].logprob, entry.top[1].token) for entry in entries] == [(-0.5, text_of([9]))] * 3
    assert len(inbox.events[0].logprobs) == 1


# Many requests.

ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 12),  # steps until it arrives
        st.lists(st.integers(3, 5), min_size=1, max_size=30),
        st.integers(1, 25),
        st.one_of(st.none(), st.integers(0, 12)),  # steps until it is cancelled
    ),
    min_size=1,
    max_size=10,
)
ENGINES = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(14, 30),
        "block_size": st.sampled_from([4, 5]),
        "max_step_tokens": st.integers(4, 24),
        "eos_every": st.sampled_from([0, 9]),
    }
)


@examples(200)
@given(shape=ENGINES, places=st.integers(1, 4), arrivals=ARRIVALS, caching=st.booleans())
def test_every_answer_is_that_of_its_request_alone(
    shape: dict[str, int], places: int, arrivals: list[tuple[int, list[int], int, int | None]], caching: bool
) -> None:
    """Whatever else comes, goes, is cancelled or put back: the blocks always hold the sequence's own tokens."""
    runner = HashRunner(**shape)
    engine = hand_engine(runner, max_sequences=places, queue_room=20, prefix_caching=caching)
    requests = [make_request(f"r{i}", prompt, answer) for i, (_, prompt, answer, _) in enumerate(arrivals)]
    inboxes = [Inbox() for _ in requests]
    for step in range(30):
        for i, (arrival, _, _, cancelled) in enumerate(arrivals):
            if arrival == step:
                engine.submit(requests[i], inboxes[i])
            if cancelled is not None and arrival + cancelled == step:
                engine.cancel(f"r{i}")
        checked_step(engine)
    run_out(engine)
    for request, inbox, (*_, cancelled) in zip(requests, inboxes, arrivals, strict=True):
        answer = runner.answer(request)
        last, got = inbox.last, [event for event in inbox.events if event.error is None]
        assert last.num_input_tokens == len(request.prompt_ids)
        assert last.num_cached_tokens < len(request.prompt_ids)
        if last.finish_reason is CANCELLED:
            assert cancelled is not None
            assert isinstance(last.error, RequestCancelledError)
            assert text_of(answer).startswith("".join(event.text for event in got))
            assert last.num_output_tokens < len(answer)
        else:
            assert last.finish_reason is (STOP if answer[-1] == EOS else LENGTH)
            assert inbox.text == text_of(answer)
            assert last.num_output_tokens == len(answer)
    stats = engine.stats()
    assert stats.finished == Counter(inbox.last.finish_reason for inbox in inboxes)
    assert stats.generation_tokens == sum(inbox.output for inbox in inboxes)
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


def test_requests_share_steps() -> None:
    runner = HashRunner()
    engine = hand_engine(runner)
    for i in range(4):
        engine.submit(make_request(f"r{i}", max_tokens=5), Inbox())
    run_out(engine)
    assert len(runner.steps) <= 6


def test_a_newcomer_joins_at_the_next_step_that_has_not_started(ahead: bool) -> None:
    runner = HashRunner()
    engine, late = hand_engine(runner), Inbox()
    engine.submit(make_request("long", max_tokens=30), Inbox())
    for _ in range(5):
        checked_step(engine)
    engine.submit(make_request("late", max_tokens=1), late)
    for _ in range(2 if ahead else 1):
        checked_step(engine)
    assert late.last.finish_reason is LENGTH


class Hasty(HashRunner):
    """Tells the step behind it a wrong token for every third sequence, and finds out later."""

    def start(self, rows: list[Row]) -> Done:
        rows = [self._known(row) for row in rows]
        made = self.run(rows)
        stale = [i for i, row in enumerate(rows) if made[i] and row.blocks[0] % 3 == 0]
        self._last = [Sampled(5, None) if i in stale else sampled for i, sampled in enumerate(made)]
        return Done(made, stale)


def test_a_step_that_took_a_wrong_token_is_computed_again() -> None:
    engine, runner = hand_engine(Hasty(max_step_tokens=64), max_sequences=8), HashRunner()
    requests = [make_request(f"r{i}", prompt=[10 + i] * 5, max_tokens=9 + i, ignore_eos=True) for i in range(6)]
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    run_out(engine)
    assert [inbox.text for inbox in inboxes] == [text_of(runner.answer(request)) for request in requests]


def test_preemption_goes_unnoticed_by_the_caller() -> None:
    runner = HashRunner(num_blocks=10, block_size=4, max_model_len=40)
    engine = hand_engine(runner)
    requests = [make_request(f"r{i}", prompt=[10 + i] * 8, max_tokens=20) for i in range(3)]
    inboxes = [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    run_out(engine)
    assert engine.stats().preemptions > 0
    assert [inbox.text for inbox in inboxes] == [text_of(runner.answer(request)) for request in requests]
    assert [len(inbox.events) for inbox in inboxes] == [20] * 3


def test_the_second_turn_of_a_chat_reuses_every_full_block_of_the_first() -> None:
    runner = HashRunner(block_size=4, max_step_tokens=64)
    engine, first, second = hand_engine(runner), Inbox(), Inbox()
    turn = make_request("1", prompt=[10] * 10, max_tokens=9)
    engine.submit(turn, first)
    run_out(engine)
    history = [*turn.prompt_ids, *runner.answer(turn)]
    engine.submit(make_request("2", prompt=[*history, 20, 21], max_tokens=3), second)
    run_out(engine)
    # The last token of an answer is never computed, so 18 tokens of 19 are in the cache.
    assert second.last.num_cached_tokens == 18 // 4 * 4
    assert engine.stats().prefix_cache_hit_tokens == 16
    assert first.last.num_cached_tokens == 0


def test_without_prefix_caching_nothing_counts_as_cached() -> None:
    engine, inbox = hand_engine(HashRunner(), prefix_caching=False), Inbox()
    for i in range(2):
        engine.submit(make_request(str(i), prompt=[10] * 20, max_tokens=2), inbox if i else Inbox())
        run_out(engine)
    assert inbox.last.num_cached_tokens == 0


# Cancelling.


def test_cancelling_one_that_waits() -> None:
    engine, first, second = hand_engine(HashRunner(), max_sequences=1, queue_room=1), Inbox(), Inbox()
    engine.submit(make_request("1", max_tokens=4), first)
    engine.submit(make_request("2"), second)
    checked_step(engine)
    assert len(engine.scheduler.waiting) == 1
    engine.cancel("2")
    checked_step(engine)
    assert second.last.finish_reason is CANCELLED
    assert second.output == 0
    assert not engine.scheduler.waiting
    run_out(engine)
    assert first.last.finish_reason is LENGTH


def test_cancelling_one_that_has_not_even_been_taken_in() -> None:
    runner = HashRunner()
    engine, inbox = hand_engine(runner), Inbox()
    engine.submit(make_request("r"), inbox)
    engine.cancel("r")
    run_out(engine)
    assert inbox.last.finish_reason is CANCELLED
    assert runner.steps == []


def test_cancelling_in_the_middle_of_a_prefill_frees_its_blocks() -> None:
    engine, inbox = hand_engine(HashRunner(max_step_tokens=4)), Inbox()
    engine.submit(make_request("r", prompt=[9] * 20), inbox)
    checked_step(engine)
    assert engine.cache.used == 5
    engine.cancel("r")
    checked_step(engine)
    assert engine.cache.used == 0
    assert inbox.last.finish_reason is CANCELLED


def test_cancelling_in_the_middle_of_an_answer_frees_its_blocks_and_its_place() -> None:
    engine, inbox = hand_engine(HashRunner(), max_sequences=1), Inbox()
    engine.submit(make_request("r", max_tokens=30), inbox)
    for _ in range(5):
        checked_step(engine)
    engine.cancel("r")
    checked_step(engine)
    assert engine.cache.used == 0
    assert inbox.output == 5
    assert engine.wait_for_room(0)


def test_cancelling_twice_late_or_a_stranger_does_nothing() -> None:
    engine, inbox, again = hand_engine(HashRunner()), Inbox(), Inbox()
    engine.cancel("stranger")
    engine.submit(make_request("r", max_tokens=2), inbox)
    run_out(engine)
    engine.cancel("r")
    checked_step(engine)
    assert inbox.last.finish_reason is LENGTH
    engine.submit(make_request("r", max_tokens=2), again)
    engine.cancel("r")
    engine.cancel("r")
    run_out(engine)
    assert again.last.finish_reason is CANCELLED


def test_a_cancellation_after_the_end_does_not_hit_a_later_request_of_the_same_id() -> None:
    engine, inbox = hand_engine(HashRunner()), Inbox()
    engine.submit(make_request("r", max_tokens=1), Inbox())
    run_out(engine)
    engine.cancel("r")
    engine.submit(make_request("r", max_tokens=2), inbox)
    run_out(engine)
    assert inbox.last.finish_reason is LENGTH


def test_a_cancellation_during_the_last_step_does_not_hit_a_later_request_of_the_same_id() -> None:
    runner = HashRunner()
    engine, first, second = hand_engine(runner), Inbox(), Inbox()
    engine.submit(make_request("r", max_tokens=1), first)
    runner.before_step = lambda rows: engine.cancel("r")
    checked_step(engine)
    runner.before_step = lambda rows: None
    assert first.last.finish_reason is LENGTH
    engine.submit(make_request("r", max_tokens=2), second)
    run_out(engine)
    assert second.last.finish_reason is LENGTH


def test_a_stream_is_the_same_whatever_its_neighbours_do() -> None:
    request = make_request("steady", prompt=[30] * 9, max_tokens=30)
    expected = [event.text for event in solo(lambda: hand_engine(HashRunner()), request).events]
    engine, inbox = hand_engine(HashRunner(num_blocks=18), max_sequences=4, queue_room=4), Inbox()
    engine.submit(request, inbox)
    for step in range(40):
        if step % 3 == 0 and engine.wait_for_room(0):
            engine.submit(make_request(f"n{step}", prompt=[30] * (step % 13 + 1), max_tokens=step % 7 + 1), Inbox())
        if step % 4 == 1:
            engine.cancel(f"n{step // 3 * 3}")
        checked_step(engine)
    run_out(engine)
    assert [event.text for event in inbox.events] == expected


# Room.


def test_queue_room_lets_some_wait() -> None:
    engine = hand_engine(HashRunner(), max_sequences=1, queue_room=2)
    for i in range(3):
        engine.submit(make_request(f"r{i}"), Inbox())
    with pytest.raises(OverloadedError):
        engine.submit(make_request("more"), Inbox())
    checked_step(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 2)
    run_out(engine)


# Failure.


class BrokenError(RuntimeError):
    """What the GPU says."""


@pytest.mark.steps_fail
@pytest.mark.parametrize("poisoned", [{1}, {0, 3}, {2, 3}, {0, 1, 2}], ids=str)
def test_what_the_model_cannot_compute_fails_alone(poisoned: set[int]) -> None:
    runner = HashRunner(vocab_size=100)
    requests = [make_request(str(i), prompt=[110 + i] * 6, max_tokens=6) for i in range(4)]
    poison = {110 + i for i in poisoned}

    def fail(rows: list[Row]) -> None:
        if any(poison & set(row.tokens) for row in rows):
            raise BrokenError("index out of range in self")

    runner.before_step = fail
    engine, inboxes = hand_engine(runner), [Inbox() for _ in requests]
    for request, inbox in zip(requests, inboxes, strict=True):
        engine.submit(request, inbox)
    run_out(engine)
    for i, (request, inbox) in enumerate(zip(requests, inboxes, strict=True)):
        if i in poisoned:
            assert inbox.last.finish_reason is ERROR
            assert isinstance(inbox.last.error, NotComputedError)
            assert str(inbox.last.error) == "internal error: the model could not compute this request"
        else:
            assert inbox.text == text_of(runner.answer(request))
    assert engine.is_ready()


@pytest.mark.steps_fail
def test_a_request_alone_that_cannot_be_computed_does_not_end_the_engine() -> None:
    runner = HashRunner(vocab_size=100)
    engine = hand_engine(runner)

    def fail(rows: list[Row]) -> None:
        if any(110 in row.tokens for row in rows):
            raise BrokenError("index out of range in self")

    runner.before_step = fail
    for i in range(3):
        bad, good = Inbox(), Inbox()
        engine.submit(make_request(f"bad {i}", prompt=[110]), bad)
        run_out(engine)
        engine.submit(make_request(f"good {i}", prompt=[10 + i], max_tokens=3), good)
        run_out(engine)
        assert (bad.last.finish_reason, good.last.finish_reason) == (ERROR, LENGTH)


def test_a_request_for_which_the_model_gives_no_numbers_fails_alone() -> None:
    runner = HashRunner()
    engine, bad, good = hand_engine(runner), Inbox(), Inbox()
    run = runner.run
    runner.run = lambda rows: [
        Sampled(NO_TOKEN, None) if 66 in row.tokens else result for row, result in zip(rows, run(rows), strict=True)
    ]
    request = make_request("good", prompt=[10], max_tokens=3)
    engine.submit(make_request("bad", prompt=[66]), bad)
    engine.submit(request, good)
    run_out(engine)
    assert (bad.last.finish_reason, good.text) == (ERROR, text_of(runner.answer(request)))
    assert isinstance(bad.last.error, NotComputedError)


@pytest.mark.steps_fail
@pytest.mark.parametrize("numbers", [True, False], ids=["no numbers", "an exception"])
def test_nobody_finds_the_blocks_of_what_could_not_be_computed(numbers: bool) -> None:
    runner = HashRunner(block_size=4, max_step_tokens=64)
    engine, bad, again = hand_engine(runner), Inbox(), Inbox()
    run, broken = runner.run, [True]

    def run_broken(rows: list[Row]) -> list[Sampled | None]:
        if not broken or 66 not in rows[0].tokens:
            return run(rows)
        if numbers:
            return [Sampled(NO_TOKEN, None)]
        raise BrokenError("index out of range in self")

    runner.run = run_broken
    request = make_request("r", prompt=[66] * 10, max_tokens=3)
    engine.submit(request, bad)
    run_out(engine)
    broken.clear()
    engine.submit(request, again)
    run_out(engine)
    assert bad.last.finish_reason is ERROR
    assert (again.text, again.last.num_cached_tokens) == (text_of(runner.answer(request)), 0)


@pytest.mark.steps_fail
def test_steps_are_smaller_for_a_while_where_memory_is_short() -> None:
    """One that fails is computed in parts, and those after it do not fail the same way again and again."""
    runner = HashRunner(num_blocks=128, max_step_tokens=64)
    engine, inboxes = hand_engine(runner, prefix_caching=False), [Inbox() for _ in range(4)]
    failed: list[int] = []

    def allocate(rows: list[Row]) -> None:
        tokens = sum(len(row.tokens) for row in rows)
        if tokens > 20:
            failed.append(tokens)
            raise MemoryError

    runner.before_step = allocate
    requests = [make_request(f"r{i}", prompt=[10 + i] * 19, max_tokens=9) for i in range(4)]
    for _ in range(5):
        for request, inbox in zip(requests, inboxes, strict=True):
            inbox.events.clear()
            engine.submit(request, inbox)
        run_out(engine)
        assert [inbox.text for inbox in inboxes] == [text_of(runner.answer(request)) for request in requests]
    assert failed == [64, 38, 26, 32], "halves of 64; then 32 were too many; then never again"
    assert engine.scheduler.step_limit.tokens == 16


@pytest.mark.steps_fail
def test_a_model_that_computes_nothing_any_more_ends_the_engine() -> None:
    runner = HashRunner()
    engine = hand_engine(runner)

    def fail(rows: list[Row]) -> None:
        raise BrokenError("the device is lost")

    runner.before_step = fail
    engine.submit(make_request("r"), Inbox())
    with pytest.raises(BrokenError):
        engine.step()


# Draining and closing.


def test_closing_an_engine_without_a_thread_ends_what_it_holds() -> None:
    engine, inboxes = hand_engine(HashRunner()), [Inbox(), Inbox()]
    engine.submit(make_request("1"), inboxes[0])
    checked_step(engine)
    engine.submit(make_request("2"), inboxes[1])
    engine.close()
    assert [inbox.last.finish_reason for inbox in inboxes] == [ERROR, ERROR]
    assert engine.cache.used == 0


# Readiness and numbers.


def test_the_numbers_add_up() -> None:
    engine = hand_engine(HashRunner(max_step_tokens=64), max_sequences=4)
    assert (engine.stats().steps, engine.stats().last_step) == (0, 0.0)
    engine.submit(make_request("1", prompt=[9] * 10, max_tokens=4), Inbox())
    engine.submit(make_request("2", prompt=[8] * 6, max_tokens=2), Inbox())
    checked_step(engine)
    during = engine.stats()
    assert (during.running, during.waiting, during.steps, during.generation_tokens) == (2, 0, 1, 2)
    assert during.kv_cache_usage == engine.cache.used / engine.cache.total > 0
    assert during.prompt_tokens == 0, "counted when a request ends"
    assert during.last_step > 0
    run_out(engine)
    after = engine.stats()
    assert (after.running, after.steps, after.generation_tokens, after.prompt_tokens) == (0, 4, 6, 16)
    assert after.finished == Counter({LENGTH: 2})
    assert len(after.times) == 2


def test_a_first_step_that_hangs_shows_in_the_numbers(threaded: Callable[..., NativeEngine]) -> None:
    runner = HashRunner()
    gate = Gate(runner)
    engine, before = threaded(runner), time.time()
    engine.submit(make_request("r"), Inbox())
    gate.reached()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.steps) == (1, 0, 0)
    assert stats.last_step >= before, "the time without work is no stall"
    gate.open()


def test_a_request_that_never_ran_has_no_queue_time_and_no_prompt_tokens() -> None:
    engine = hand_engine(HashRunner())
    engine.submit(make_request("r"), Inbox())
    engine.cancel("r")
    run_out(engine)
    stats = engine.stats()
    (times,) = stats.times
    assert (times.queue, times.first_token, times.per_output_token) == (None, None, None)
    assert times.total >= 0
    assert stats.prompt_tokens == 0


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    engine = hand_engine(HashRunner())
    engine.submit(make_request("r", max_tokens=1), Inbox())
    run_out(engine)
    assert engine.stats().times[0].per_output_token is None


# The fake itself.


def test_the_fake_runner_notices_a_block_that_holds_another_sequence() -> None:
    runner = HashRunner()
    engine, inbox = hand_engine(runner), Inbox()
    request = make_request("r", max_tokens=6)
    engine.submit(request, inbox)
    checked_step(engine)
    runner._slots[engine.scheduler.running[0].table.blocks[0], 0] = 99
    run_out(engine)
    assert inbox.text != text_of(runner.answer(request))


# Stop strings and special tokens.


def said(ids: Sequence[int], tokenizer: Tokenizer, eos: Iterable[int] = (), **sampling: object) -> Inbox:
    """What a request gets from a model that says `ids`."""
    runner, inbox = HashRunner(vocab_size=400, eos_ids=eos), Inbox()
    runner.next_token = lambda tokens: [*ids, *[ids[-1]] * 20][len(tokens) - 3]
    engine = hand_engine(runner, tokenizer)
    engine.submit(make_request("r", **{"max_tokens": len(ids), **sampling}), inbox)
    run_out(engine)
    return inbox


def test_min_tokens_holds_back_stop_strings() -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode("a b c d e f g h").ids
    assert said(ids, tokenizer, stop=(" ",)).text == "a"
    held = said(ids, tokenizer, stop=(" ",), min_tokens=6)
    assert held.output >= 6
    assert held.text == tokenizer.decode(ids[: held.output]).rstrip(" ")
    assert held.last.finish_reason is STOP


@pytest.mark.parametrize(("stop", "text"), [("<|end|>", "he"), ("e<|end|>", "h"), ("e<|en", "h"), ("<|end|>w", "he")])
def test_stop_strings_with_special_tokens(stop: str, text: str) -> None:
    tokenizer = byte_level_tokenizer(["<|end|>"])
    ids = tokenizer.encode("he<|end|>wo").ids
    ended = said(ids, tokenizer, stop=(stop,))
    assert (ended.text, ended.last.finish_reason) == (text, STOP)


@pytest.mark.parametrize(("stop", "text"), [("e<|end|>", "h"), ("<|end|>", "he"), ("e<|end|>x", "he")])
def test_the_token_that_ends_an_answer_may_complete_a_stop_string(stop: str, text: str) -> None:
    tokenizer = byte_level_tokenizer(["<|end|>"])
    end = tokenizer.token_to_id("<|end|>")
    ended = said(tokenizer.encode("he<|end|>").ids, tokenizer, eos={end}, stop=(stop,), max_tokens=9)
    assert (ended.text, ended.last.finish_reason) == (text, STOP)


@pytest.mark.parametrize(("skip", "text"), [(True, "hewo"), (False, "he<|end|>wo")])
def test_special_tokens_are_shown_where_wanted(skip: bool, text: str) -> None:
    tokenizer = byte_level_tokenizer(["<|end|>"])
    assert said(tokenizer.encode("he<|end|>wo").ids, tokenizer, skip_special_tokens=skip).text == text
