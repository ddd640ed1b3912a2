from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_engine.config import NgramSettings, parse_config
from chat_engine.errors import ConfigError
from chat_engine.native.runner import Row
from chat_engine.native.sampler import NO_TOKEN, Sampled
from chat_engine.native.speculation import Guesses
from chat_engine.request import ChatRequest, FinishReason
from tests.chat_engine.builders import (
    HashRunner,
    Inbox,
    checked_step,
    examples,
    hand_engine,
    letter_tokenizer,
    make_request,
    run_out,
)

NGRAM = {"ngram": {"tokens": 3, "max_sequences": 3}}

# What is guessed.


def guesses(**settings: int) -> Guesses:
    return Guesses(NgramSettings(**settings))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 9, 1, 2], [3, 4, 9]),  # what followed the last time
        ([1, 2, 3, 1, 2, 5, 1, 2], [5, 1, 2]),  # the last time, not the first
        ([7, 1, 2, 3, 8, 1, 2, 5, 7, 1, 2], [3, 8, 1]),  # by the longer run
        ([1, 2, 3, 9, 2], []),  # one token is too little
        ([1, 2, 3, 4], []),
        ([5, 5, 5], [5, 5, 5]),  # a loop goes on
        ([8, 1, 2, 1, 2, 1, 2], [1, 2, 1]),
        ([], []),
    ],
)
def test_what_followed_the_last_time_is_guessed(tokens: list[int], expected: list[int]) -> None:
    assert guesses(tokens=3).next(tokens, 99) == expected


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9), st.integers(1, 3), st.integers(0, 3))
def test_guesses_are_those_of_a_plain_search(tokens: list[int], most: int, shortest: int, more: int) -> None:
    settings = NgramSettings(tokens=5, shortest=shortest, longest=shortest + more)
    ahead = Guesses(settings)
    for end in range(len(tokens) + 1):
        assert ahead.next(tokens[:end], most) == searched(tokens[:end], settings, most)


def searched(tokens: list[int], settings: NgramSettings, most: int) -> list[int]:
    for size in range(settings.longest, settings.shortest - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) >= size and tokens[end - size : end] == tokens[-size:]:
                behind = tokens[end:] * 99
                return behind[: min(most, settings.tokens)]
    return []


def test_a_sequence_that_is_guessed_wrongly_rests_and_tries_again() -> None:
    ahead, loop = guesses(tokens=4), [5, 6] * 40
    assert ahead.next(loop, 4)
    for _ in range(16):
        ahead.judge(4, 0, len(loop))
    assert not ahead.next(loop, 4)
    assert ahead.next([*loop, *loop], 4)


def test_one_that_is_guessed_right_does_not_rest() -> None:
    ahead, loop = guesses(tokens=4), [5, 6] * 40
    for _ in range(99):
        ahead.judge(4, 1, len(loop))
    assert ahead.next(loop, 4)


# In the engine.


class Parrot(HashRunner):
    """Says again what it has heard, with an error now and then."""

    def next_token(self, tokens: list[int]) -> int:
        if super().next_token(tokens) % 11 == 0:
            return super().next_token(tokens)
        return tokens[-5] if len(tokens) > 5 else 3 + len(tokens)


@pytest.mark.parametrize("ahead", [False, True], ids=["in step", "ahead"])
@examples(30)
@given(
    st.lists(st.tuples(st.integers(1, 14), st.integers(1, 30)), min_size=1, max_size=5),
    st.sampled_from([12, 24, 64]),
    st.sampled_from([8, 16]),
)
def test_answers_are_the_same_with_guesses(
    ahead: bool, sizes: list[tuple[int, int]], blocks: int, step_tokens: int
) -> None:
    def answer_all(**settings: object) -> tuple[list[str], int]:
        runner = Parrot(num_blocks=max(blocks, 12), block_size=4, max_step_tokens=step_tokens, max_model_len=48)
        runner.runs_ahead = ahead
        engine, inboxes = hand_engine(runner, max_sequences=4, queue_room=9, **settings), []
        for number, (prompt, most) in enumerate(sizes):
            inboxes.append(Inbox())
            ids = [10 + (number + i) % 7 for i in range(prompt)]
            engine.submit(make_request(f"r{number}", ids, most, ignore_eos=bool(number % 2)), inboxes[-1])
            checked_step(engine)
        run_out(engine)
        assert all(inbox.last.num_output_tokens <= most for inbox, (_, most) in zip(inboxes, sizes, strict=True))
        return [inbox.text for inbox in inboxes], engine.stats().accepted_tokens

    expected, none = answer_all()
    assert not none
    assert answer_all(speculation=parse_config({"model": "m", "speculation": NGRAM}).speculation)[0] == expected


def one(runner: HashRunner, request: ChatRequest, **settings: object) -> tuple[Inbox, list[list[Row]], object]:
    config = parse_config({"model": "m", "speculation": {"ngram": {**NGRAM["ngram"], **settings}}})
    engine, inbox = hand_engine(runner, speculation=config.speculation), Inbox()
    engine.submit(request, inbox)
    run_out(engine)
    return inbox, runner.steps, engine.stats()


class Loop(HashRunner):
    def next_token(self, tokens: list[int]) -> int:
        return 20 + len(tokens) % 3


def test_steps_are_saved_and_counted() -> None:
    inbox, steps, stats = one(Loop(), make_request("r", [5], 40, ignore_eos=True))
    assert inbox.output == 40
    assert len(steps) < 16
    assert stats.generation_tokens == 40
    assert stats.drafted_tokens >= stats.accepted_tokens > 24
    assert inbox.text == letter_tokenizer().decode([20 + n % 3 for n in range(1, 41)])


def test_no_more_than_is_wanted_is_guessed() -> None:
    _, steps, _ = one(Loop(), make_request("r", [5], 12, ignore_eos=True))
    assert max(row.length for rows in steps for row in rows) <= 12  # the last token is not computed


def test_a_stop_among_guesses_ends_the_answer_there() -> None:
    tokens = [20 + n % 3 for n in range(1, 30)]
    stop = letter_tokenizer().decode(tokens[8:10])
    expected, _, _ = one(Loop(), make_request("r", [5], 30, stop=(stop,)), max_sequences=1)
    assert expected.last.finish_reason is FinishReason.STOP
    assert expected.text == letter_tokenizer().decode(tokens).split(stop)[0]


def test_many_sequences_are_not_guessed() -> None:
    runner = Loop(max_step_tokens=64)
    config = parse_config({"model": "m", "speculation": NGRAM}).speculation
    engine = hand_engine(runner, speculation=config)
    for number in range(4):
        engine.submit(make_request(f"r{number}", [5 + number], 12, ignore_eos=True), Inbox())
    run_out(engine)
    assert not any(row.guesses for rows in runner.steps for row in rows)


@pytest.mark.parametrize("sampling", [{"repetition_penalty": 1.2}, {"logprobs": 1}, {"frequency_penalty": 0.5}])
def test_what_depends_on_each_token_is_not_guessed(sampling: dict[str, object]) -> None:
    _, steps, stats = one(Loop(), make_request("r", [5], 20, ignore_eos=True, **sampling))
    assert not any(row.guesses for rows in steps for row in rows)
    assert stats.drafted_tokens == 0


def test_no_numbers_behind_a_guess_end_the_answer_when_its_turn_comes() -> None:
    class Broken(Loop):
        def _next(self, row: Row) -> Sampled:
            made = super()._next(row)
            if row.length - row.guesses > 20:
                return Sampled(NO_TOKEN, None)
            behind = [Sampled(NO_TOKEN, None) if row.length - row.guesses + i >= 20 else s
                      for i, s in enumerate(made.behind_guesses)]  # fmt: skip
            return Sampled(made.token_id, None, (), tuple(behind))

    inbox, _, _ = one(Broken(), make_request("r", [5], 40, ignore_eos=True))
    assert inbox.last.error is not None
    assert inbox.text == letter_tokenizer().decode([20 + n % 3 for n in range(1, inbox.output + 1)])


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ngram": {"shortest": 5}}, "shortest is 5, more than longest, 4"),
        ({"ngram": {"token": 5}}, "speculation.ngram.token: Extra inputs"),
        ({}, "speculation.ngram: Field required"),
        ({"eagle": {}}, "speculation.eagle"),
    ],
)
def test_mistakes_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        parse_config({"model": "m", "speculation": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"speculation": NGRAM}, "do not go together"), ({"cuda_graphs": False}, "async_scheduling needs cuda_graphs")],
)
def test_starting_ahead_needs_graphs_and_no_guesses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"model": "m", "async_scheduling": True, **settings})
