"""Speculation by n-grams: the same answers, counted. The last test ends the engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from chat_engine.errors import InvalidArgumentError
from chat_engine.serving import Serving
from tests.vllm_engine.asking import ask, submit
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.started import Started

SPECULATION = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
PROMPTS = ["Hello!", "What is the capital of France?", "Count to ten.", "a b c a b c a b c a b c a b"]


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    started = Started(vllm_settings({"speculative_config": SPECULATION}, drain_seconds=1.0))
    yield started
    started.serving.engine.close()


def test_greedy_answers_are_those_without(started: Started, native_serving: Serving) -> None:
    greedy = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}
    ours = [submit(started.serving, prompt, **greedy) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        assert answer.ended.wait(30)
        assert answer.text == ask(native_serving, prompt, **greedy).text, prompt


def test_what_was_proposed_and_accepted_is_counted(started: Started, native_serving: Serving) -> None:
    before = started.serving.engine.stats()
    answer = ask(started.serving, PROMPTS[-1], temperature=0, max_tokens=300, ignore_eos=True)  # it repeats itself
    after = started.serving.engine.stats()
    drafted, accepted = after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens
    steps = after.steps - before.steps
    assert 0 < accepted <= drafted
    assert steps < answer.output - accepted // 2  # what is accepted takes no step of its own
    stats = native_serving.engine.stats()
    assert (stats.drafted_tokens, stats.accepted_tokens) == (0, 0)


def test_what_cannot_be_combined_with_it_is_refused_by_name(started: Started) -> None:
    answer = ask(started.serving, "Hello!", logit_bias={"300": 2}, temperature=0, max_tokens=5)
    assert isinstance(answer.last.error, InvalidArgumentError)
    assert "logit_bias" in str(answer.last.error)


def test_without_kernels_for_it_nothing_is_drawn(started: Started) -> None:
    """vLLM would draw by what lies in memory, and end."""
    with pytest.raises(InvalidArgumentError, match=r"^temperature: 0\.7 is not possible with speculative decoding"):
        ask(started.serving, "Hello!", temperature=0.7, max_tokens=5)
    assert ask(started.serving, "Hello!", temperature=0, logprobs=2, max_tokens=5).last.error is None


def test_a_core_that_is_killed_ends_all_streams_and_the_server(started: Started) -> None:
    answers = started.running(3)
    errors = started.serving.engine.stats().finished
    os.kill(started.of("EngineCore").pid, signal.SIGKILL)
    started.ends_all(answers, errors)
