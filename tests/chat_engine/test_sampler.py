from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chat_engine.native import sampler
from chat_engine.native.sampler import NO_TOKEN, SamplingState, sample, uniform
from chat_engine.request import MAX_COUNT, SamplingParams
from tests.chat_engine.builders import examples, state

SMALL, LARGE = 50, 3000  # below and above the candidates that are looked at first


def random_logits(vocab: int, seed: int = 0, rows: int = 1, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def transformers_probabilities(logits: Tensor, seen: list[int], params: SamplingParams) -> Tensor:
    """What `generate` would draw from, `[vocab]`, in float64."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k > 0:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(MinPLogitsWarper(params.min_p))
    return steps(torch.tensor([seen], dtype=torch.long), logits.double()[None])[0].softmax(-1)


def engine_probabilities(logits: Tensor, row: SamplingState) -> Tensor:
    """What the engine would draw from, `[vocab]`: the length of each token's part of the unit interval.

    Found without sampling: `_invert`, the last thing before a token is chosen, hands over what it was given.
    """
    caught: list[tuple[Tensor, Tensor | None]] = []
    invert, keep = sampler._invert, sampler._keep
    last_ids: list[Tensor | None] = [None]

    def keeping(*args: object) -> tuple[Tensor, Tensor, Tensor]:
        result = keep(*args)
        last_ids[0] = result[1]
        return result

    def inverting(probabilities: Tensor, points: Tensor) -> Tensor:
        caught.append((probabilities, last_ids[0]))
        return invert(probabilities, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_invert", inverting)
        patch.setattr(sampler, "_keep", keeping)
        sample(logits[None], [row])
    probabilities, ids = caught[-1]
    dense = torch.zeros(logits.shape[-1], dtype=torch.float64)
    kept = probabilities[0].double() / probabilities[0].double().sum()
    return kept if ids is None else dense.scatter(0, ids[0], kept)


def same(logits: Tensor, seen: list[int], **params: float) -> None:
    row = state(prompt=seen, **params)
    ours = engine_probabilities(logits, row)
    theirs = transformers_probabilities(logits, seen, row.params)
    differs = (ours > 0) != (theirs > 0)
    # float32 and float64 may disagree about tokens on the very edge of a cut, never about more probability than that.
    assert torch.maximum(ours, theirs)[differs].sum() < 1e-4
    assert differs.sum() <= max(1, 0.002 * (theirs > 0).sum()) or torch.maximum(ours, theirs)[differs].sum() < 1e-6
    assert torch.allclose(ours, theirs, atol=1e-5)


# Against transformers.


@examples(150)
@given(
    vocab=st.sampled_from([1, 2, SMALL, LARGE]),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0005, 0.3, 3.0, 20.0]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([-1, 0, 1, 3, 40, 1023, 1024, 1025, 2000, 2999, 3000, 10_000]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition=st.sampled_from([1.0, 0.5, 1.3]),
)
def test_the_distribution_is_that_of_transformers(
    vocab: int, seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float, repetition: float
) -> None:
    # Of a nearly flat distribution, min-p 1 keeps the single likeliest token, and float32 has several.
    assume(not (min_p == 1 and spread < 0.01))
    logits = random_logits(vocab, seed, spread=spread)[0]
    seen = sorted({0, vocab // 2, vocab - 1})
    same(logits, seen, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition)


@pytest.mark.parametrize("top_k", [0, 1024, 1025, 2048])
@pytest.mark.parametrize("top_p", [0.2, 0.4, 0.6])
def test_a_cut_beyond_the_first_candidates_of_a_flat_distribution(top_k: int, top_p: float) -> None:
    """top-p is a part of what top-k leaves, also where top-k leaves more than the candidates looked at first."""
    same(torch.linspace(0, -1e-3, 4096), [0], top_k=top_k, top_p=top_p)


def test_penalties_follow_the_openai_formula_after_the_repetition_penalty() -> None:
    logits = random_logits(SMALL, 3)[0]
    prompt, output = [1, 2, 3], [3, 3, 7, 8, 7, 3]
    row = state(prompt=prompt, output=output, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=-0.3)
    expected = logits.double().clone()
    for token in {*prompt, *output}:
        expected[token] = expected[token] / 1.4 if expected[token] > 0 else expected[token] * 1.4
    for token, count in Counter(output).items():
        expected[token] -= 0.6 - 0.3 * count
    assert torch.allclose(engine_probabilities(logits, row), expected.softmax(-1), atol=1e-6)


def test_presence_and_frequency_leave_the_prompt_alone() -> None:
    logits = random_logits(SMALL, 4)[0]
    row = state(prompt=[1, 2], output=[5], presence_penalty=2.0, frequency_penalty=2.0)
    expected = logits.double().clone()
    expected[5] -= 4
    assert torch.allclose(engine_probabilities(logits, row), expected.softmax(-1), atol=1e-6)


def test_logit_bias_is_added_before_everything_else() -> None:
    logits = random_logits(SMALL, 5)[0]
    row = state(logit_bias={3: 5.0, 4: -100.0}, temperature=0.5)
    expected = logits.double().clone()
    expected[3] += 5
    expected[4] -= 100
    assert torch.allclose(engine_probabilities(logits, row), (expected / 0.5).softmax(-1), atol=1e-6)


# Choice.


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = random_logits(SMALL, 6, rows=4)
    assert [s.token_id for s in sample(logits, [state(temperature=0.0)] * 4)] == logits.argmax(-1).tolist()


def test_bias_and_penalties_move_the_greedy_choice() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 4] = 5
    rows = [
        state(temperature=0.0, logit_bias={7: 9.0}),
        state(temperature=0.0, output=[4] * 3, frequency_penalty=2.0),
        state(temperature=0.0, prompt=[4], repetition_penalty=2.0),
    ]
    assert [s.token_id for s in sample(logits, rows)] == [7, 0, 4]


def test_rows_of_all_kinds_do_not_disturb_each_other() -> None:
    kinds = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 2000, "top_p": 0.9},
        {"top_k": 1},
        {"repetition_penalty": 1.5, "prompt": [1, 2, 3]},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "output": [9, 9]},
        {"logit_bias": {5: 50.0}},
        {"min_tokens": 3, "stop_ids": [0, 1]},
        {"logprobs": 4},
        {"temperature": 0.0, "logprobs": 0},
    ]
    rows = [state(seed=i, **kind) for i, kind in enumerate(kinds)]
    logits = random_logits(LARGE, 7, rows=len(rows))
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    backwards = sample(logits.flip(0), rows[::-1])[::-1]
    assert [s.token_id for s in together] == [s.token_id for s in alone] == [s.token_id for s in backwards]
    for mixed, single in zip(together, alone, strict=True):
        assert (mixed.logprobs is None) == (single.logprobs is None)
        if mixed.logprobs:
            assert dict(mixed.logprobs.top) == pytest.approx(dict(single.logprobs.top))


def test_the_logits_and_states_are_left_as_they_were() -> None:
    logits = random_logits(SMALL, 8)
    before = logits.clone()
    row = state(output=[1, 1], logit_bias={3: 5.0}, frequency_penalty=1.0, min_tokens=9, stop_ids=[4])
    sample(logits, [row])
    assert torch.equal(logits, before)
    assert (row.output, row.num_output) == (Counter({1: 2}), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_chosen_from_in_float32(dtype: torch.dtype) -> None:
    logits = random_logits(SMALL, 9, rows=3).to(dtype)
    rows = [state(seed=i, logprobs=2, top_p=0.9) for i in range(3)]
    assert sample(logits, rows) == sample(logits.float(), rows)


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-5])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = random_logits(LARGE, 10)
    rows = [state(temperature=temperature), state(temperature=temperature, top_p=0.9)]
    for row in rows:
        assert sample(logits, [row])[0].token_id == logits.argmax().item()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_row_has_no_token_and_leaves_the_others_alone(bad: float) -> None:
    logits = random_logits(SMALL, 11, rows=3)
    rows = [state(seed=1), state(seed=2), state(seed=3, top_p=0.9)]
    good = sample(logits[:1], rows[:1])[0].token_id
    logits[1:] = bad
    tokens = [s.token_id for s in sample(logits, rows)]
    assert tokens == [good, NO_TOKEN, NO_TOKEN]


def test_tokens_the_model_rules_out_are_never_drawn() -> None:
    logits = torch.full((1, LARGE), -math.inf)
    logits[0, 2999] = 0.0
    for seed in range(50):
        assert sample(logits, [state(seed=seed)])[0].token_id == 2999
        assert sample(logits, [state(seed=seed, top_p=0.999)])[0].token_id == 2999


# Ends.


def test_the_end_is_banned_until_min_tokens_have_been_made() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 2] = 50
    early = state(temperature=0.0, min_tokens=2, stop_ids=[2], output=[5])
    late = state(temperature=0.0, min_tokens=2, stop_ids=[2], output=[5, 5])
    assert sample(logits, [early])[0].token_id != 2
    assert sample(logits, [late])[0].token_id == 2


def test_a_bias_towards_the_end_does_not_lift_the_ban() -> None:
    row = state(temperature=0.0, min_tokens=1, stop_ids=[2], logit_bias={2: 100.0})
    assert sample(torch.zeros(1, 10), [row])[0].token_id != 2


def test_banning_the_whole_vocabulary_does_not_break_the_step() -> None:
    rows = [state(min_tokens=1, stop_ids=range(10)), state(min_tokens=1, stop_ids=range(10), top_p=0.5), state(seed=4)]
    tokens = [s.token_id for s in sample(torch.zeros(3, 10), rows)]
    assert all(0 <= token < 10 for token in tokens)


# Draws.


@examples(300)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_uniform_lies_between_zero_and_one(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1


def test_uniform_depends_on_seed_and_position() -> None:
    numbers = {uniform(seed, position) for seed in range(50) for position in range(50)}
    assert len(numbers) == 2500


def test_uniform_is_uniform() -> None:
    counts = Counter(int(uniform(seed, position) * 10) for seed in range(40) for position in range(250))
    chi_square = sum((counts[i] - 1000) ** 2 / 1000 for i in range(10))
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_k": 6}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_draws_follow_the_distribution(params: dict[str, float]) -> None:
    draws = 4000
    logits = random_logits(12, 12, spread=1.2)
    expected = transformers_probabilities(logits[0], [], state(**params).params) * draws
    rows = [state(seed=seed, **params) for seed in range(draws)]
    counts = Counter(s.token_id for s in sample(logits.expand(draws, -1), rows))
    assert set(counts) <= set(expected.nonzero()[:, 0].tolist())
    frequent = [i for i in range(12) if expected[i] >= 5]
    chi_square = sum(float((counts[i] - expected[i]) ** 2 / expected[i]) for i in frequent)
    assert chi_square < 32.9  # at most 12 degrees of freedom, p = 0.001


def test_one_seed_draws_independently_at_each_position() -> None:
    logits = torch.zeros(1, 4)
    row = state(seed=9)
    counts: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    last = 0
    for _ in range(2000):
        token = sample(logits, [row])[0].token_id
        counts[token] += 1
        pairs[last, token] += 1
        row.append(token)
        last = token
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(4)) < 16.3
    assert sum((pairs[i, j] - 125) ** 2 / 125 for i in range(4) for j in range(4)) < 37.7


@pytest.mark.parametrize("point", [0.0, 1 - 2**-53])
def test_the_ends_of_the_interval_fall_on_possible_tokens(point: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: point)
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.5, -math.inf]])
    for params in ({}, {"top_k": 2}, {"top_p": 0.999}, {"min_p": 0.01}):
        assert sample(logits, [state(**params)])[0].token_id in (1, 3)


# Log-probabilities.


def test_logprobs_are_those_of_the_model_before_any_change() -> None:
    logits = random_logits(SMALL, 13, rows=2)
    rows = [
        state(seed=1, logprobs=5, temperature=0.3, top_k=3, logit_bias={9: 40.0}),
        state(temperature=0.0, logprobs=0, repetition_penalty=3.0, prompt=range(20)),
    ]
    exact = logits.double().log_softmax(-1)
    first, second = sample(logits, rows)
    assert first.token_id == 9
    assert first.logprobs is not None
    assert second.logprobs is not None
    assert first.logprobs.chosen == pytest.approx(exact[0, 9].item(), abs=1e-5)
    best = exact[0].topk(5)
    assert [token for token, _ in first.logprobs.top] == best.indices.tolist()
    assert [value for _, value in first.logprobs.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert second.logprobs.chosen == pytest.approx(exact[1, second.token_id].item(), abs=1e-5)
    assert second.logprobs.top == ()


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    rows = [state(logprobs=n) if n is not None else state() for n in (None, 0, 3, None, 7, SMALL + 50)]
    sampled = sample(random_logits(SMALL, 14, rows=6), rows)
    assert [None if s.logprobs is None else len(s.logprobs.top) for s in sampled] == [None, 0, 3, None, 7, SMALL]


# State.


@pytest.mark.parametrize(
    ("params", "plain"),
    [
        ({}, True),
        ({"temperature": 0.0, "top_p": 0.5}, True),
        ({"min_tokens": 3}, True),
        ({"min_tokens": 3, "stop_ids": [2]}, False),
        ({"min_tokens": 1, "stop_ids": [2], "output": [7]}, True),
        ({"logit_bias": {1: 1.0}}, False),
        ({"presence_penalty": -0.1}, False),
        ({"repetition_penalty": 1.1}, False),
    ],
)
def test_plain_rows_are_those_whose_logits_are_taken_as_they_are(params: dict[str, object], plain: bool) -> None:
    assert state(**params).plain is plain


def test_counts_are_kept_only_where_a_penalty_needs_them() -> None:
    assert state(output=[1, 1], prompt=[5]).output == Counter()
    assert state(output=[1, 1], prompt=[5]).prompt == frozenset()
    penalised = state(output=[1, 1], prompt=[5], repetition_penalty=2.0)
    assert (penalised.output, penalised.prompt) == (Counter({1: 2}), frozenset({5}))


def test_the_largest_top_k_means_the_whole_vocabulary() -> None:
    same(random_logits(SMALL, 16)[0], [0], top_k=MAX_COUNT, top_p=0.9)


def test_an_absurd_repetition_penalty_does_not_break_the_step() -> None:
    logits = random_logits(SMALL, 15, rows=2)
    rows = [state(prompt=range(10), repetition_penalty=5e-324), state(seed=5)]
    broken, neighbour = sample(logits, rows)
    assert broken.token_id in range(SMALL)
    assert neighbour == sample(logits[1:], rows[1:])[0]
