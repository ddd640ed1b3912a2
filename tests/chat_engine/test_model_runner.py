from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native import copied
from chat_engine.native.model_loader import LoadedModel
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Row
from chat_engine.native.tiled import find_kernels
from tests.chat_engine.architectures import CONTEXT, MAIN, REFUSED, VOCAB, WINDOW, unused_window
from tests.chat_engine.builders import make_config, save_model, state


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MAIN["llama with grouped heads"](), tmp_path_factory.mktemp("llama"))


def load(folder: Path, **settings: object) -> ModelRunner:
    defaults = {"model": str(folder), "dtype": "float32", "device": "cpu", "block_size": 4, "max_sequences": 2}
    return ModelRunner(make_config(**{**defaults, "max_step_tokens": 16, **settings}))


def saved(folder: Path, generation: dict[str, object] | None = None, **config: object) -> Path:
    """A Llama of one layer with settings of its own."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    save_model(
        hf.LlamaConfig(**{**sizes, "num_attention_heads": 2, "max_position_embeddings": CONTEXT, **config}), folder
    )
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


# What is served, and what is not.


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_model_that_would_answer_wrongly_is_refused(name: str, tmp_path: Path) -> None:
    folder = save_model(REFUSED[name](), tmp_path)
    with pytest.raises(UnsupportedModelError):
        load(folder)


def test_a_window_that_attention_is_not_told_of_limits_the_context(tmp_path: Path) -> None:
    folder = save_model(unused_window(), tmp_path)
    assert load(folder).limits.max_model_len == WINDOW
    with pytest.raises(ConfigError, match="max_model_len"):
        load(folder, max_model_len=WINDOW + 1)


def test_logits_unlike_those_of_the_models_own_attention_are_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copied, "_causal", lambda q, k, v, scale: q * 0)
    with pytest.raises(UnsupportedModelError, match="different logits"):
        load(llama)


def test_a_missing_checkpoint_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing"):
        load(tmp_path / "nothing")


def test_numbers_beyond_float16_are_noticed_while_loading(tmp_path: Path) -> None:
    folder = save_model(MAIN["llama with grouped heads"](), tmp_path, std=1e4)
    with pytest.raises(ConfigError, match="dtype"):
        load(folder, dtype="float16")


def test_steps_do_not_start_ahead_on_a_cpu(llama: Path) -> None:
    with pytest.raises(ConfigError, match="async_scheduling: is for GPUs"):
        load(llama, async_scheduling=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cuda_without_a_gpu_is_the_operators_mistake(llama: Path) -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        load(llama, device="cuda")


# Limits.


def test_limits_come_from_model_and_settings(llama: Path) -> None:
    limits = load(llama, kv_cache_tokens=4 * CONTEXT + 3).limits
    assert (limits.max_model_len, limits.block_size, limits.num_blocks) == (CONTEXT, 4, CONTEXT)
    assert (limits.max_step_tokens, limits.vocab_size) == (16, VOCAB)


def test_without_a_setting_the_cache_holds_everybodys_whole_context(llama: Path) -> None:
    assert load(llama, max_sequences=3).limits.num_blocks == 3 * CONTEXT // 4


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_model_len": CONTEXT + 1}, "max_model_len: 97 is more than the 96"),
        ({"kv_cache_tokens": CONTEXT - 1}, "less than one context of 96"),
        ({"kv_cache_tokens": 3}, "less than one context of 96"),
        ({"max_sequences": 17}, "max_step_tokens: 16 is less than max_sequences, 17"),
    ],
)
def test_settings_that_cannot_work_are_refused(llama: Path, settings: dict[str, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(llama, **settings)


@pytest.mark.parametrize("context", [2, 5, 9, 13, 33, 50, 63])
def test_a_context_between_two_padded_shapes_loads_and_runs(llama: Path, context: int) -> None:
    """Warming up must stay within the cache, whatever shapes are rounded up to."""
    runner = load(llama, max_model_len=context, kv_cache_tokens=-(-context // 4) * 4, max_step_tokens=64)
    blocks = list(range(runner.limits.num_blocks))
    assert runner.start([Row([5] * context, context, blocks, state(temperature=0.0))]).results()[0] is not None


@pytest.mark.parametrize(("own", "rows"), [(True, 19), (False, 20)])
def test_steps_are_padded_only_where_a_new_number_of_rows_costs_a_set_up(
    llama: Path, monkeypatch: pytest.MonkeyPatch, own: bool, rows: int
) -> None:
    if find_kernels(torch.device("cpu"), torch.float32) is None:
        pytest.skip("needs the kernels for CPUs: make cpu-kernels")
    monkeypatch.setattr(LoadedModel, "suits_own_products", own)
    runner = load(llama, max_step_tokens=32)
    seen: list[int] = []
    runner._model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    runner.start([Row([5] * 19, 19, list(range(5)), state(temperature=0.0))]).results()
    assert seen == [rows]


def test_learned_positions_are_not_exceeded(tmp_path: Path) -> None:
    config = hf.GPT2Config(
        vocab_size=VOCAB, n_positions=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
    )
    assert load(save_model(config, tmp_path), max_step_tokens=64).limits.max_model_len == 50


def test_ropes_that_depend_on_the_length_are_limited_to_where_they_do_not(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 40}
    assert load(saved(tmp_path, rope_parameters=rope)).limits.max_model_len == 40


# From generation_config.json.


@pytest.mark.parametrize(
    ("generation", "eos", "defaults"),
    [
        ({"eos_token_id": 7}, {2, 7}, {"temperature": 0.0}),
        ({"eos_token_id": [7, 9, VOCAB]}, {2, 7, 9}, {"temperature": 0.0}),
        ({}, {2}, {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {2}, {"temperature": 0.6, "top_p": 0.9, "top_k": 50}),
        ({"do_sample": True, "top_k": 0}, {2}, {"top_k": 0}),
        ({"top_k": 20, "top_p": 0.8}, {2}, {"temperature": 0.0, "top_k": 20, "top_p": 0.8}),
        ({"do_sample": False, "temperature": 0.6}, {2}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.2}, {2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
    ],
)
def test_ends_and_defaults_are_those_of_generate(
    tmp_path: Path, generation: dict[str, object], eos: set[int], defaults: dict[str, float]
) -> None:
    runner = load(saved(tmp_path, generation, eos_token_id=2))
    assert runner.defaults.eos_ids == eos
    assert runner.defaults.sampling == defaults


def test_a_checkpoint_in_half_precision_runs_in_it(tmp_path: Path) -> None:
    model = hf.AutoModelForCausalLM.from_config(MAIN["qwen2"]()).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    runner = load(tmp_path, dtype="bfloat16")
    assert runner._cache.keys[0].dtype == torch.bfloat16
    assert runner.start([Row([5, 6, 7], 3, [0], state(temperature=0.0))]).results()[0] is not None


@pytest.mark.parametrize(
    ("generation", "eos"),
    [(None, set()), ({}, set()), ({"eos_token_id": 7}, {7}), ({"eos_token_id": 7, "_from_model_config": True}, {7})],
)
def test_an_end_that_only_the_config_class_has_by_default_is_none(
    tmp_path: Path, generation: dict[str, object] | None, eos: set[int]
) -> None:
    """2 for a Llama, which is any token in another vocabulary."""
    folder = saved(tmp_path, generation)
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    if generation is None:
        (folder / "generation_config.json").unlink()
    assert hf.AutoConfig.from_pretrained(folder).eos_token_id == 2
    assert load(folder).defaults.eos_ids == eos


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_generation_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    """transformers would go on as if there were none."""
    folder = saved(tmp_path)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"generation_config.json: .*JSON"):
        load(folder)
