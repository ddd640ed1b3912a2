"""How far positions reach, and that answers there are those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf

from chat_engine.errors import ConfigError
from chat_engine.native.context import ContextRange, context_range
from chat_engine.native.model_loader import context_limits
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Row
from tests.chat_engine.architectures import CONTEXT, VOCAB
from tests.chat_engine.builders import make_config, reference_model, save_model, state

TRAINED = 32
LONG_FACTORS = {"short_factor": [1.0] * 8, "long_factor": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0]}


def llama(trained: int = TRAINED, **rope: object) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=trained, bos_token_id=1, eos_token_id=2,
        rope_parameters={"rope_theta": 10000.0, **rope} if rope else None,
    )  # fmt: skip


ROPES = {
    "none": (llama(), ContextRange(TRAINED, TRAINED)),
    "linear": (llama(rope_type="linear", factor=4.0), ContextRange(128, 128)),
    "yarn": (llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=TRAINED), ContextRange(128, 128)),
    "yarn, of which the config knows the length": (
        llama(128, rope_type="yarn", factor=4.0, original_max_position_embeddings=TRAINED),
        ContextRange(128, 128),
    ),
    "yarn beyond a config that says a little more than the original (Qwen3)": (
        llama(40, rope_type="yarn", factor=4.0, original_max_position_embeddings=TRAINED),
        ContextRange(128, 128),
    ),
    "llama3, of which the config knows the length": (
        llama(
            96, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=TRAINED,
        ),
        ContextRange(96, 96),
    ),
    "llama3": (
        llama(
            rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=TRAINED,
        ),
        ContextRange(128, 128),
    ),
    "dynamic": (llama(rope_type="dynamic", factor=4.0), ContextRange(TRAINED, 128)),
    "longrope": (
        llama(128, rope_type="longrope", factor=4.0, original_max_position_embeddings=TRAINED, **LONG_FACTORS),
        ContextRange(TRAINED, 128),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROPES)
def test_the_context_is_what_the_frequencies_are_made_for(name: str) -> None:
    config, expected = ROPES[name]
    assert context_range(config) == expected


def test_layers_with_ropes_of_their_own_have_the_length_of_the_config() -> None:
    config = hf.Gemma3TextConfig(
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert context_range(config) == ContextRange(CONTEXT, CONTEXT)


def test_a_cap_lowers_both() -> None:
    assert ContextRange(32, 128).capped(64) == ContextRange(32, 64)


@pytest.mark.parametrize("name", [name for name, (_, reach) in ROPES.items() if reach.most > TRAINED])
def test_logits_beyond_the_original_length_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """At the full length, where transformers has chosen the frequencies that all sequences have here."""
    config, reach = ROPES[name]
    folder = save_model(config, tmp_path)
    runner = load(folder, max_model_len=reach.most)
    assert runner.limits.max_model_len == reach.most
    ids = [3 + i * 7 % (VOCAB - 3) for i in range(reach.most)]
    ours = last_logits(runner, ids)
    theirs = reference_model(folder)(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(ours, theirs, atol=1e-3), float((ours - theirs).abs().max())


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_within_the_usual_context_nothing_is_stretched(name: str, tmp_path: Path) -> None:
    folder = save_model(ROPES[name][0], tmp_path)
    runner = load(folder)
    assert runner.limits.max_model_len == TRAINED
    ids = [3 + i * 5 % (VOCAB - 3) for i in range(TRAINED - 1)]
    theirs = reference_model(folder)(torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(last_logits(runner, ids), theirs, atol=1e-3)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_in_a_longer_context_a_short_sequence_has_the_same_logits_beside_a_long_one(name: str, tmp_path: Path) -> None:
    runner = load(save_model(ROPES[name][0], tmp_path), max_model_len=128)
    short, long = list(range(3, 12)), [3 + i % 100 for i in range(100)]
    alone = last_logits(runner, short)
    rows = [(short, [40, 41, 42]), (long, list(range(25)))]
    together = runner._forward([Row(ids, len(ids), blocks, state(temperature=0.0)) for ids, blocks in rows])
    assert torch.allclose(together[0], alone, atol=1e-4)


@pytest.mark.parametrize("name", ROPES)
def test_the_tokenizer_tells_the_same_limits_and_more_is_refused(name: str, tmp_path: Path) -> None:
    config, reach = ROPES[name]
    folder = save_model(config, tmp_path)
    settings = make_config(model=str(folder), dtype="float32", device="cpu")
    assert context_limits(settings).max_model_len == load(folder).limits.max_model_len == reach.usual
    with pytest.raises(ConfigError, match=f"max_model_len: {reach.most + 1} is more than the {reach.most} tokens"):
        load(folder, max_model_len=reach.most + 1)


def load(folder: Path, **settings: object) -> ModelRunner:
    fixed = {"dtype": "float32", "device": "cpu", "block_size": 4, "max_sequences": 2, "max_step_tokens": 256}
    return ModelRunner(make_config(model=str(folder), kv_cache_tokens=256, **fixed, **settings))


def last_logits(runner: ModelRunner, ids: list[int]) -> torch.Tensor:
    blocks = list(range(-(-len(ids) // 4)))
    with torch.inference_mode():
        logits = runner._forward([Row(ids, len(ids), blocks, state(temperature=0.0))])
    return logits[0]
