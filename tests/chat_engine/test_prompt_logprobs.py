"""Log-probabilities of the prompt, against one plain pass of transformers in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor

from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.sampler import Targets, score
from chat_engine.request import FinishReason, PromptToken
from local.options import ROOT
from tests.chat_engine.architectures import CONTEXT, OTHERS
from tests.chat_engine.builders import (
    EOS,
    Inbox,
    checked_step,
    examples,
    make_config,
    make_request,
    reference_model,
    run_out,
    solo,
)
from tests.chat_engine.test_engine_vs_generate import (
    BLOCK,
    TOKENIZER,
    Limited,
    Model,
    _no_gradients,
    model,
    models,
    prompts,
)

__all__ = ["_no_gradients", "model", "models"]  # fixtures

CLOSE = 1e-3
TINY_CHAT = ROOT / "models" / "tiny-chat"


def plain_logprobs(folder: Path, prompt: list[int]) -> Tensor:
    """`[tokens, vocab]`: row `i` is about the token behind `i`."""
    with torch.inference_mode():
        return reference_model(folder)(torch.tensor([prompt])).logits[0].double().log_softmax(-1)


def check(found: list[PromptToken], prompt: list[int], rows: Tensor, top: int) -> None:
    assert [token.token_id for token in found] == prompt
    first, *others = found
    assert (first.logprob, first.rank, first.top) == (None, None, ())
    for token, row in zip(others, rows, strict=False):
        own = row[token.token_id].item()
        assert token.logprob == pytest.approx(own, abs=CLOSE)
        assert (row > own + CLOSE).sum() < token.rank <= (row > own - CLOSE).sum() + 1
        assert [other.logprob for other in token.top] == pytest.approx(row.topk(top).values.tolist(), abs=CLOSE)
        assert [row[other.token_id].item() for other in token.top] == pytest.approx(
            [other.logprob for other in token.top], abs=CLOSE
        )


def scored(inbox: Inbox) -> list[PromptToken]:
    return [token for event in inbox.events for token in event.prompt_tokens]


def engine_of(
    model: Model, places: int = 4, blocks: int = 4 * CONTEXT // BLOCK, budget: int = 64, at_once: int = 64
) -> NativeEngine:
    limits = {
        "num_blocks": blocks,
        "max_step_tokens": max(budget, places),
        "max_model_len": blocks * BLOCK,
        "max_scored_tokens": at_once,
    }
    return NativeEngine(make_config(max_sequences=places, queue_room=30), Limited(model.runner, **limits), TOKENIZER)


@functools.cache
def expected(model: Model, prompt: int) -> Tensor:
    return plain_logprobs(model.folder, prompts()[prompt])


@dataclass(frozen=True)
class Arrival:
    """A request of a scenario; `top` None asks for no scores."""

    step: int
    prompt: int
    max_tokens: int
    top: int | None
    cancel_after: int | None = None


def play(model: Model, engine: NativeEngine, arrivals: list[Arrival]) -> None:
    """Runs a scenario by hand and compares scores and answers."""
    inboxes = [Inbox() for _ in arrivals]
    for step in range(max(a.step + (a.cancel_after or 0) for a in arrivals) + 1):
        for i, arrival in enumerate(arrivals):
            if arrival.step == step:
                request = make_request(
                    f"r{i}",
                    prompts()[arrival.prompt],
                    arrival.max_tokens,
                    prompt_logprobs=arrival.top,
                    return_token_ids=True,
                )
                engine.submit(request, inboxes[i])
            if arrival.cancel_after is not None and arrival.step + arrival.cancel_after == step:
                engine.cancel(f"r{i}")
        checked_step(engine)
    run_out(engine)
    for arrival, inbox in zip(arrivals, inboxes, strict=True):
        compare(model, arrival, inbox)


def compare(model: Model, arrival: Arrival, inbox: Inbox) -> None:
    prompt = prompts()[arrival.prompt]
    assert [event.prompt_token_ids for event in inbox.events] == [tuple(prompt), *[()] * (len(inbox.events) - 1)]
    found = scored(inbox)
    if inbox.last.finish_reason is FinishReason.CANCELLED:
        prompt = prompt[: len(found)]  # as far as it came; each token once
    if arrival.top is None:
        assert found == []
    elif found:
        check(found, prompt, expected(model, arrival.prompt), arrival.top)
        assert inbox.last.num_cached_tokens == 0
    if inbox.last.finish_reason is not FinishReason.CANCELLED:
        assert bool(found) is (arrival.top is not None)
        answer = model.answers[arrival.prompt][: arrival.max_tokens]
        made = [token_id for event in inbox.events for token_id in event.token_ids]
        assert made == answer
        assert inbox.last.finish_reason is (FinishReason.STOP if answer[-1:] == [EOS] else FinishReason.LENGTH)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 8),
        prompt=st.integers(0, len(prompts()) - 1),
        max_tokens=st.integers(0, 10),
        top=st.one_of(st.none(), st.integers(0, 3)),
        cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 8)),
    ),
    min_size=1,
    max_size=7,
)


@examples(80, phases=(Phase.generate,))  # to make a failure smaller would take minutes
@given(
    arrivals=ARRIVALS,
    places=st.integers(1, 5),
    blocks=st.integers(14, 40),
    budget=st.sampled_from([5, 6, 9, 17, 64]),
    at_once=st.sampled_from([1, 3, 8, 64]),
)
def test_scores_are_those_of_a_plain_pass(
    model: Model, arrivals: list[Arrival], places: int, blocks: int, budget: int, at_once: int
) -> None:
    """Others ask for none. Shared beginnings, chunks of any size, a cache that is too small, cancellations."""
    play(model, engine_of(model, places, blocks, budget, at_once), arrivals)


CROWD = [Arrival(i % 5, i, 10, (None, 0, 2)[i % 3], 4 if i == 9 else None) for i in range(len(prompts()))]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_families(models: Callable[[str], Model], name: str) -> None:
    model = models(name)
    engine = engine_of(model, places=4, blocks=20, budget=11, at_once=7)
    play(model, engine, CROWD)
    play(model, engine, CROWD)  # now with a full prefix cache
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_cache_hit_tokens > 0


@pytest.mark.parametrize("at_once", [3, 64])
def test_a_sequence_that_was_put_back_scores_nothing_twice(model: Model, at_once: int) -> None:
    """In the middle of its prompt, or of its answer: the other one grows into its blocks."""
    engine, grows, scoring = engine_of(model, places=2, blocks=15, budget=40, at_once=at_once), Inbox(), Inbox()
    engine.submit(make_request("grows", prompts()[5], 14, ignore_eos=True), grows)
    checked_step(engine)
    engine.submit(make_request("scoring", prompts()[11], 10, prompt_logprobs=1, ignore_eos=True), scoring)
    while engine.scheduler.preemptions == 0:
        checked_step(engine)
    assert len(scored(scoring)) == (33 if at_once == 64 else 22)
    run_out(engine)
    check(scored(scoring), prompts()[11], expected(model, 11), 1)
    assert scoring.output == 10


def test_blocks_are_left_to_others_but_not_taken(model: Model) -> None:
    engine = engine_of(model)
    play(model, engine, [Arrival(0, 6, 3, 2)])
    play(model, engine, [Arrival(0, 6, 3, 2)])
    assert engine.stats().prefix_cache_hit_tokens == 0
    play(model, engine, [Arrival(0, 6, 3, None)])
    assert engine.stats().prefix_cache_hit_tokens > 0


def test_scores_come_as_the_prompt_is_computed(model: Model) -> None:
    inbox = solo(lambda: engine_of(model, budget=16), make_request("r", prompts()[6], 2, prompt_logprobs=0))
    assert [len(event.prompt_tokens) for event in inbox.events][:3] == [17, 16, 7]
    assert [event.num_output_tokens for event in inbox.events][:3] == [0, 0, 1]


def test_logits_of_a_step_are_limited_and_others_go_on(model: Model) -> None:
    engine, scoring, other = engine_of(model, budget=16, at_once=4), Inbox(), Inbox()
    engine.submit(make_request("scoring", prompts()[6], 2, prompt_logprobs=0), scoring)
    engine.submit(make_request("other", prompts()[11], 2), other)
    for _ in range(4):
        checked_step(engine)
    assert [len(event.prompt_tokens) for event in scoring.events] == [5, 4, 4, 4]
    assert other.events, "33 tokens in three steps, beside the other"
    run_out(engine)


def test_only_the_prompt(model: Model) -> None:
    """No token is sampled for `max_tokens` 0, and the prompt stays in the cache."""
    for top in (None, 1):
        engine, inbox = engine_of(model, budget=16), Inbox()
        engine.submit(make_request("r", prompts()[6], 0, prompt_logprobs=top, logprobs=1), inbox)
        run_out(engine)
        assert (inbox.last.finish_reason, inbox.output, inbox.text) == (FinishReason.LENGTH, 0, "")
        assert engine.stats().generation_tokens == 0
        assert len(scored(inbox)) == (0 if top is None else 40)
        play(model, engine, [Arrival(0, 6, 5, None)])
        assert engine.stats().prefix_cache_hit_tokens > 0


def test_a_prompt_alone_may_fill_the_whole_cache(model: Model) -> None:
    inbox = solo(lambda: engine_of(model, blocks=10, budget=16), make_request("r", prompts()[6], 0, prompt_logprobs=1))
    check(scored(inbox), prompts()[6], expected(model, 6), 1)


def test_a_prompt_of_one_token_has_nothing_to_score(model: Model) -> None:
    inbox = solo(lambda: engine_of(model), make_request("r", [7], 2, prompt_logprobs=3))
    assert scored(inbox) == [PromptToken(TOKENIZER.decode([7]), TOKENIZER.decode([7]).encode(), 7)]
    assert len(inbox.events[0].prompt_tokens) == 1


def test_the_embedded_checkpoint() -> None:
    config = make_config(
        model=str(TINY_CHAT), dtype="float32", device="cpu", kv_cache_tokens=2048, max_model_len=512,
        max_sequences=2, max_step_tokens=64,
    )  # fmt: skip
    tokenizer = Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json"))
    prompt = tokenizer.encode("Triton is a server that answers. 月亮是🌙。 def f(x):\n    return x * 2\n" * 6).ids
    assert len(prompt) > 2 * 64
    engine, runner = Inbox(), ModelRunner(config)
    chat = NativeEngine(config, runner, tokenizer)
    chat.submit(make_request("r", prompt, 1, prompt_logprobs=5, logprobs=5), engine)
    run_out(chat)
    check(scored(engine), prompt, plain_logprobs(TINY_CHAT, prompt), 5)


# The sampler's part.


def test_scores_of_several_rows_with_counts_of_their_own() -> None:
    logits = torch.randn(150, 50, generator=torch.Generator().manual_seed(0))
    wanted = [Targets(0, list(range(49)), 2), Targets(3, [7], 0), Targets(1, [i % 50 for i in range(100)], 50)]
    rows = iter(logits.double().log_softmax(-1))
    for targets, scores in zip(wanted, score(logits, wanted), strict=True):
        for token_id, found, row in zip(targets.token_ids, scores, rows, strict=False):
            assert found.chosen == pytest.approx(row[token_id].item(), abs=1e-5)
            assert found.rank == (row > row[token_id]).sum() + 1
            assert [token for token, _ in found.top] == row.topk(targets.top).indices.tolist()


def test_a_score_of_half_precision_is_computed_in_full() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ((found, *_),) = score(logits, [Targets(0, [5, 6, 7], 1)])
    assert found.chosen == pytest.approx(logits[0].double().log_softmax(-1)[5].item(), abs=1e-5)
