"""`generation_config.json` means what it means to `transformers.generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from chat_engine.native.generation_defaults import in_vocabulary
from chat_engine.native.model_loader import load_model
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.sampler import NO_TOKEN, sample
from chat_engine.native.token_rules import Ngrams, TokenRules
from tests.chat_engine.architectures import MAIN, VOCAB
from tests.chat_engine.builders import (
    Inbox,
    hand_engine,
    letter_tokenizer,
    make_config,
    make_request,
    reference_model,
    run_out,
    save_model,
    state,
)

PROMPT = [5, 9, 5, 9, 7]


@pytest.mark.parametrize(
    "generation",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3, "repetition_penalty": 1.3},
        {"suppress_tokens": list(range(3, 60))},
        {"begin_suppress_tokens": list(range(3, 100)), "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_a_greedy_answer_is_that_of_generate(generation: dict[str, object], tmp_path: Path) -> None:
    folder = save_model(MAIN["llama with grouped heads"](), tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    runner = ModelRunner(make_config(model=str(folder), dtype="float32", device="cpu", block_size=4))
    engine, inbox = hand_engine(runner, letter_tokenizer()), Inbox()
    engine.submit(make_request("r", PROMPT, max_tokens=12, **runner.defaults.sampling), inbox)
    run_out(engine)
    theirs = reference_model(folder).generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0]
    assert inbox.text == letter_tokenizer().decode(theirs[len(PROMPT) :].tolist())


def test_max_new_tokens_is_the_default_and_what_is_not_honoured_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(MAIN["llama with grouped heads"](), tmp_path)
    settings = {"max_new_tokens": 77, "typical_p": 0.9, "num_beams": 1, "forced_eos_token_id": 2, "my_note": "x"}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    loaded = load_model(make_config(model=str(folder), dtype="float32", device="cpu"))
    assert loaded.defaults.max_tokens == 77
    assert "not honoured: forced_eos_token_id: 2, typical_p: 0.9" in caplog.text
    assert "num_beams" not in caplog.text


def test_ids_beyond_the_vocabulary_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    assert in_vocabulary("an end", [3, VOCAB, -1], VOCAB) == {3}
    assert "an end: [-1, 128] left out; the model has the tokens 0 to 127" in caplog.text


class TestNgrams:
    def test_what_would_occur_twice(self) -> None:
        ngrams = Ngrams(3, [1, 2, 3, 1, 2])
        assert ngrams.would_repeat() == {3}
        ngrams.append(4)
        assert ngrams.would_repeat() == set()
        for token in (1, 2):
            ngrams.append(token)
        assert ngrams.would_repeat() == {3, 4}

    def test_single_tokens(self) -> None:
        assert Ngrams(1, [4, 5, 4]).would_repeat() == {4, 5}

    def test_too_little_has_come(self) -> None:
        assert Ngrams(4, [1, 2]).would_repeat() == set()


def test_where_everything_is_ruled_out_the_rules_give_way() -> None:
    everything = state(temperature=1.0)
    everything.rules = TokenRules(suppressed=frozenset(range(8)))
    assert 0 <= sample(torch.zeros(1, 8), [everything])[0].token_id < 8


def test_top_p_0_takes_the_most_probable_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert [sample(logits, [state(seed, top_p=0.0, temperature=2.0)])[0].token_id for seed in range(9)] == [1] * 9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_numbers_has_no_token(temperature: float) -> None:
    logits = torch.tensor([[0.0, float("nan"), 1.0], [0.0, 3.0, 1.0], [float("inf"), 0.0, 0.0]])
    found = [row.token_id for row in sample(logits, [state(i, temperature=temperature, top_k=1) for i in range(3)])]
    assert found == [NO_TOKEN, 1, NO_TOKEN]
