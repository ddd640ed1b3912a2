"""The engine against `transformers.generate`: greedy, float32, on the CPU, token for token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given
from hypothesis import strategies as st

from chat_engine.config import NgramSettings, Speculation
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Row, RunnerLimits, Started
from chat_engine.request import FinishReason
from tests.chat_engine import architectures
from tests.chat_engine.architectures import CONTEXT, MAIN, OTHERS, VOCAB
from tests.chat_engine.builders import (
    EOS,
    Inbox,
    checked_step,
    examples,
    letter_tokenizer,
    make_config,
    make_request,
    reference_model,
    run_out,
    save_model,
    solo,
    state,
)

LONGEST_ANSWER = 14
BLOCK = 4
TOKENIZER = letter_tokenizer(VOCAB)


def prompts() -> list[list[int]]:
    """Of many lengths, around the borders of blocks and chunks, several with one beginning."""
    random = torch.Generator().manual_seed(1)
    base, other = (torch.randint(3, VOCAB, (40,), generator=random).tolist() for _ in range(2))
    return [
        base[:1], base[:3], base[:4], base[:5], base[:8], base[:17], base[:40], other[:9],
        base[:16] + other[:5], base[:8] + other[:1], [7] * 12, other[:33],
    ]  # fmt: skip


class Limited:
    """A loaded runner with smaller limits, so that one model serves all tests."""

    def __init__(self, runner: ModelRunner, **limits: int) -> None:
        self.limits: RunnerLimits = dataclasses.replace(runner.limits, **limits)
        self.defaults, self.longest_pass = runner.defaults, runner.longest_pass
        self.steps = 0
        self.runs_ahead = runner.runs_ahead
        self._runner = runner

    def start(self, rows: list[Row]) -> Started:
        assert sum(len(row.tokens) for row in rows) <= self.limits.max_step_tokens
        assert all(block < self.limits.num_blocks for row in rows for block in row.blocks)
        self.steps += 1
        return self._runner.start(rows)


@dataclass(frozen=True)
class Model:
    """One checkpoint, in the engine's hands and in those of transformers."""

    folder: Path

    @cached_property
    def runner(self) -> ModelRunner:
        config = make_config(
            model=str(self.folder), dtype="float32", device="cpu", block_size=BLOCK, kv_cache_tokens=4 * CONTEXT,
            max_sequences=8, max_step_tokens=64,
        )  # fmt: skip
        return ModelRunner(config)

    @cached_property
    def answers(self) -> list[list[int]]:
        """Greedy answers of `generate` to all prompts."""
        return self._answers[0]

    @property
    def is_clear(self) -> bool:
        """Whether each token of the answers is clearly the best, so that rounding cannot matter."""
        return self._answers[1] > 1e-3

    @cached_property
    def _answers(self) -> tuple[list[list[int]], float]:
        model, found, closest = reference_model(self.folder), [], float("inf")
        for prompt in prompts():
            made = model.generate(
                torch.tensor([prompt]), max_new_tokens=LONGEST_ANSWER, do_sample=False, eos_token_id=EOS,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            best = torch.cat(made.logits).topk(2).values
            closest = min(closest, (best[:, 0] - best[:, 1]).min().item())
            found.append(made.sequences[0, len(prompt) :].tolist())
        return found, closest

    def engine(
        self, places: int = 4, blocks: int = 4 * CONTEXT // BLOCK, budget: int = 64, **settings: object
    ) -> NativeEngine:
        runner = Limited(
            self.runner, num_blocks=blocks, max_step_tokens=max(budget, places), max_model_len=blocks * BLOCK
        )
        return NativeEngine(make_config(max_sequences=places, queue_room=30, **settings), runner, TOKENIZER)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        seed = 1
        while name not in made or not made[name].is_clear:
            assert seed < 20, "no seed gives clear answers"
            folder = tmp_path_factory.mktemp("model")
            made[name] = Model(save_model({**MAIN, **OTHERS}[name](), folder, seed=seed))
            seed += 1
        return made[name]

    return get


@pytest.fixture(params=sorted(MAIN))
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@dataclass(frozen=True)
class Arrival:
    """A request of a scenario."""

    step: int
    prompt: int
    max_tokens: int
    cancel_after: int | None = None


def play(model: Model, engine: NativeEngine, arrivals: list[Arrival]) -> None:
    """Runs a scenario by hand and compares every answer."""
    inboxes = [Inbox() for _ in arrivals]
    for step in range(max(a.step + (a.cancel_after or 0) for a in arrivals) + 1):
        for i, arrival in enumerate(arrivals):
            if arrival.step == step:
                engine.submit(make_request(f"r{i}", prompts()[arrival.prompt], arrival.max_tokens), inboxes[i])
            if arrival.cancel_after is not None and arrival.step + arrival.cancel_after == step:
                engine.cancel(f"r{i}")
        checked_step(engine)
    run_out(engine)
    for arrival, inbox in zip(arrivals, inboxes, strict=True):
        prompt, answer = prompts()[arrival.prompt], model.answers[arrival.prompt][: arrival.max_tokens]
        text, last = TOKENIZER.decode(answer), inbox.last
        assert last.num_input_tokens == len(prompt)
        if last.finish_reason is FinishReason.CANCELLED:
            assert arrival.cancel_after is not None
            assert text.startswith(inbox.text)
            continue
        assert inbox.text == text
        assert last.num_output_tokens == len(answer)
        assert last.finish_reason is (FinishReason.STOP if answer[-1] == EOS else FinishReason.LENGTH)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 8),
        prompt=st.integers(0, len(prompts()) - 1),
        max_tokens=st.integers(1, LONGEST_ANSWER),
        cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 8)),
    ),
    min_size=1,
    max_size=7,
)


@examples(120, phases=(Phase.generate,))  # to make a failure smaller would take minutes
@given(
    arrivals=ARRIVALS, places=st.integers(1, 5), blocks=st.integers(14, 40), budget=st.sampled_from([5, 6, 9, 17, 64])
)
def test_every_answer_is_that_of_generate(
    model: Model, arrivals: list[Arrival], places: int, blocks: int, budget: int
) -> None:
    """Arrivals in any order, shared beginnings, chunks of any size, a cache that is too small, cancellations."""
    play(model, model.engine(places, blocks, budget), arrivals)


GUESSES = Speculation(ngram=NgramSettings(shortest=1, longest=3, tokens=3))


@examples(40, phases=(Phase.generate,))
@given(arrivals=ARRIVALS, places=st.integers(1, 4), blocks=st.integers(14, 40), budget=st.sampled_from([5, 9, 64]))
def test_every_answer_is_that_of_generate_with_guesses_too(
    model: Model, arrivals: list[Arrival], places: int, blocks: int, budget: int
) -> None:
    play(model, model.engine(places, blocks, budget, speculation=GUESSES), arrivals)


CROWD = [Arrival(i % 5, i, LONGEST_ANSWER, 4 if i == 9 else None) for i in range(len(prompts()))]


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_other_families_answer_as_generate_does(models: Callable[[str], Model], name: str) -> None:
    model = models(name)
    engine = model.engine(places=4, blocks=20, budget=11)
    play(model, engine, CROWD)
    play(model, engine, CROWD)  # now with a full prefix cache
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_cache_hit_tokens > 0


def test_the_crowd_as_a_whole(model: Model) -> None:
    engine = model.engine(places=5, blocks=16, budget=7)
    play(model, engine, CROWD)
    assert engine.stats().preemptions > 0


def test_one_token_at_a_time(model: Model) -> None:
    play(model, model.engine(places=1, budget=1), [Arrival(0, 6, 5), Arrival(0, 8, 5)])


def test_turns_of_a_chat_build_on_each_other(model: Model) -> None:
    """Each turn repeats the last one with its answer; only the new part is computed, and the answer stays right."""
    engine, reference = model.engine(), reference_model(model.folder)
    history, known = prompts()[4], 0
    for turn in range(4):
        inbox = Inbox()
        engine.submit(make_request(f"turn {turn}", history, 6, ignore_eos=True), inbox)
        run_out(engine)
        made = reference.generate(torch.tensor([history]), max_new_tokens=6, min_new_tokens=6, do_sample=False)[
            0
        ].tolist()
        if EOS not in made:  # `generate` may not choose it here
            assert inbox.text == TOKENIZER.decode(made[len(history) :])
        assert inbox.last.num_cached_tokens == known // BLOCK * BLOCK
        answer = [TOKENIZER.token_to_id(letter) for letter in inbox.text]
        known = len(history) + inbox.output - 1
        if len(answer) < 6:
            pytest.skip("this random model says special tokens, which have no text to go on from")
        history = [*history, *answer, 3 + turn]


# The forward pass.


def test_logits_of_chunks_in_pages_are_those_of_one_plain_pass(model: Model) -> None:
    """Sequences in chunks of all sizes, side by side, their blocks scattered."""
    reference, runner = reference_model(model.folder), model.runner
    sequences = [prompts()[i] for i in (6, 11, 5, 1)]
    blocks = [[9, 3, 21, 5, 30, 12, 7, 18, 2, 40], [10, 11, 6, 25, 8, 13, 14, 4, 33], [16, 15, 20, 17, 31], [19]]
    whole = [reference(torch.tensor([tokens])).logits[0] for tokens in sequences]
    done, rows_at = [0, 0, 0, 0], torch.Generator().manual_seed(2)
    greedy = state(temperature=0.0)
    while any(n < len(tokens) for n, tokens in zip(done, sequences, strict=True)):
        step = []
        for i, tokens in enumerate(sequences):
            count = min(len(tokens) - done[i], int(torch.randint(0, 8, (1,), generator=rows_at)))
            if count:
                step.append((count, i))
        rows = {}
        for count, i in step:
            end = done[i] + count
            rows[i] = Row(sequences[i][done[i] : end], end, blocks[i][: -(-end // BLOCK)], greedy)
            done[i] = end
        order = sorted(rows, key=lambda i: (len(rows[i].tokens) > 1, rows[i].length))
        if not order:
            continue
        logits = runner._forward([rows[i] for i in order])
        for i, got in zip(order, logits, strict=True):
            expected = whole[i][rows[i].length - 1]
            assert torch.allclose(got, expected, atol=1e-4 * max(1.0, expected.abs().max().item()))


def test_results_come_back_in_the_order_of_the_rows(model: Model) -> None:
    """Whatever order the attention likes inside."""
    greedy, runner = state(temperature=0.0), model.runner
    numbers = (6, 0, 7, 3, 11)
    rows, block = [], 0
    for number in numbers:
        tokens = prompts()[number]
        needed = -(-len(tokens) // BLOCK)
        rows.append(Row(tokens, len(tokens), list(range(block, block + needed)), greedy))
        block += needed
    rows.insert(2, Row([5, 6], 2, [block], None))
    sampled = runner.start(rows).results()
    assert sampled.pop(2) is None
    assert [s.token_id for s in sampled] == [model.answers[number][0] for number in numbers]


# Sampling.

SAMPLING = {
    "plain": {},
    "cut": {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
    "penalised": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "biased": {"logit_bias": {9: 3.0, 10: -100.0}, "min_tokens": 6, "min_p": 0.02},
    "flat": {"temperature": 2.0},
}


@pytest.mark.parametrize("kind", sorted(SAMPLING))
def test_a_seed_gives_the_same_text_in_any_company_in_any_chunks_and_after_preemption(model: Model, kind: str) -> None:
    request = make_request("seeded", prompts()[5], 12, seed=77, **{"temperature": 1.0, **SAMPLING[kind]})
    expected = solo(model.engine, request)
    for places, blocks, budget in ((1, 40, 1), (4, 16, 5), (5, 14, 64)):
        engine, inbox = model.engine(places, blocks, budget), Inbox()
        for i in range(3):
            engine.submit(make_request(f"before {i}", prompts()[i + 6], 10, seed=i, temperature=1.5), Inbox())
        engine.submit(request, inbox)
        for i in range(3):
            engine.submit(make_request(f"after {i}", prompts()[i], 14, seed=i), Inbox())
            checked_step(engine)
        engine.cancel("before 1")
        run_out(engine)
        assert inbox.text == expected.text
        assert inbox.output == expected.output


def test_different_seeds_give_different_texts(model: Model) -> None:
    texts = {
        solo(model.engine, make_request("r", prompts()[5], 12, seed=seed, temperature=2.0)).text for seed in range(8)
    }
    assert len(texts) > 1


def test_logprobs_are_those_of_a_plain_pass(model: Model) -> None:
    prompt = prompts()[5]
    inbox = solo(lambda: model.engine(budget=6), make_request("r", prompt, 5, logprobs=3, ignore_eos=True))
    entries = [entry for event in inbox.events for entry in event.logprobs]
    answer = model.answers[5][:5]
    plain = reference_model(model.folder)(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    for i, entry in enumerate(entries[: len(answer)]):
        expected = plain[len(prompt) - 1 + i].topk(3)
        assert [top.logprob for top in entry.top] == pytest.approx(expected.values.tolist(), abs=1e-3)
        assert entry.chosen.logprob == pytest.approx(expected.values[0].item(), abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "cut", "biased", "flat", "of two tokens"])
def test_what_chance_chooses_is_the_same_with_guesses(model: Model, kind: str) -> None:
    kinds = {**SAMPLING, "of two tokens": {"logit_bias": {9: 50.0, 10: 50.0}}}
    requests = [
        make_request(f"r{i}", prompts()[i] * 2, LONGEST_ANSWER, seed=i, ignore_eos=True, **kinds[kind])
        for i in range(6)
    ]
    expected = [solo(model.engine, request).text for request in requests]  # before: both engines use one cache
    guessing, made = model.engine(speculation=GUESSES), []
    for request in requests:
        inbox = Inbox()
        guessing.submit(request, inbox)
        run_out(guessing)
        made.append(inbox.text)
    assert made == expected
    assert guessing.stats().drafted_tokens > 0
    assert guessing.stats().accepted_tokens > 0 or kind != "of two tokens"


def test_a_stream_is_the_same_to_the_byte_whatever_its_neighbours_do(model: Model) -> None:
    request = make_request("steady", prompts()[8], LONGEST_ANSWER, ignore_eos=True)
    expected = [event.text for event in solo(model.engine, request).events]
    engine, inbox = model.engine(places=3, blocks=24, budget=9), Inbox()
    engine.submit(request, inbox)
    odd = ({"temperature": 2.0}, {"logprobs": 5}, {"top_k": 3}, {"stop": ("\u0110",)}, {"logit_bias": {2: 100.0}})
    for step in range(40):
        if step % 2 == 0 and engine.wait_for_room(0):
            sampling = odd[step // 2 % len(odd)]
            engine.submit(make_request(f"n{step}", prompts()[step % 12], 9, seed=step, **sampling), Inbox())
        if step % 5 == 1:
            engine.cancel(f"n{step // 2 * 2}")
        checked_step(engine)
    run_out(engine)
    assert [event.text for event in inbox.events] == expected


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(MAIN))
def test_on_cuda_in_float32_every_answer_is_that_of_generate(models: Callable[[str], Model], name: str) -> None:
    model = models(name)
    config = make_config(
        model=str(model.folder), dtype="float32", device="cuda", block_size=BLOCK, kv_cache_tokens=4 * CONTEXT,
        max_sequences=8, max_step_tokens=64,
    )  # fmt: skip
    runner = ModelRunner(config)
    assert runner._cache.use_kernels
    limited = Limited(runner, num_blocks=20, max_step_tokens=11, max_model_len=20 * BLOCK)
    engine = NativeEngine(make_config(max_sequences=4, queue_room=30), limited, TOKENIZER)
    play(model, engine, CROWD)
    assert engine.stats().preemptions > 0


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 20])
def test_on_cuda_in_bfloat16_logits_are_near_those_of_transformers(tmp_path: Path, window: int | None) -> None:
    """In chunks, and as decodes by a CUDA graph."""
    folder = save_model(architectures.wide(window), tmp_path, std=0.05)
    config = make_config(
        model=str(folder), dtype="bfloat16", device="cuda", max_sequences=4, max_step_tokens=256, kv_cache_tokens=8192
    )
    runner, reference = ModelRunner(config), reference_model(folder).cuda()
    size = runner.limits.block_size
    tokens = torch.randint(3, VOCAB, (300,), generator=torch.Generator().manual_seed(3)).tolist()
    blocks = [2, 5, 1, 7, 3, 4, *range(8, 8 + 300 // size)][: -(-300 // size)]
    expected = reference(torch.tensor([tokens], device="cuda")).logits[0]
    greedy = state(temperature=0.0)
    for begin, end in ((0, 130), (130, 131), (131, 299), (299, 300)):
        rows = [Row(tokens[begin:end], end, blocks[: -(-end // size)], greedy)]
        with torch.inference_mode():
            logits = runner._forward(rows)
        likeness = torch.nn.functional.cosine_similarity(logits[0].float(), expected[end - 1].float(), dim=0)
        assert likeness > 0.99


@pytest.mark.gpu
def test_on_cuda_in_bfloat16_a_stream_does_not_depend_on_its_neighbours_much(tmp_path: Path) -> None:
    """Batched matrix products round differently, so not to the byte; but nobody reads somebody else's blocks."""
    folder = save_model(architectures.wide(None), tmp_path, std=0.05)
    config = make_config(model=str(folder), dtype="bfloat16", device="cuda", max_sequences=4, kv_cache_tokens=8192)
    runner = ModelRunner(config)
    request = make_request("r", prompts()[5], 1, logprobs=1)

    def first_logprob(company: int) -> float:
        engine, inbox = NativeEngine(config, runner, TOKENIZER), Inbox()
        for i in range(company):
            engine.submit(make_request(f"n{i}", prompts()[i + 6], 20), Inbox())
        engine.submit(request, inbox)
        run_out(engine)
        return inbox.last.logprobs[0].chosen.logprob

    assert first_logprob(3) == pytest.approx(first_logprob(0), abs=0.1)
