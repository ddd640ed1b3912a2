from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chat_engine.config import EngineConfig
from chat_engine.errors import UnsupportedModelError
from chat_engine.native.model_loader import context_limits, cpu_dtype, load_model
from tests.chat_engine.architectures import MAIN, OTHERS, VOCAB, WINDOW, unused_window
from tests.chat_engine.builders import make_config, reference_model, save_model

MODELS = {**MAIN, **OTHERS, "a window that attention is not told of": unused_window}


def settings(folder: Path, **more: object) -> EngineConfig:
    return make_config(model=str(folder), dtype="float32", device="cpu", **more)


@pytest.mark.parametrize("name", MODELS)
def test_the_limits_without_weights_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = save_model(MODELS[name](), tmp_path)
    loaded = load_model(settings(folder))
    (folder / "model.safetensors").unlink()
    limits = context_limits(settings(folder))
    assert (limits.max_model_len, limits.vocab_size) == (loaded.context.usual, loaded.vocab_size)


def test_a_window_that_attention_is_not_told_of_is_noticed_without_weights(tmp_path: Path) -> None:
    unused_window().save_pretrained(tmp_path)
    assert context_limits(settings(tmp_path)).max_model_len == WINDOW


def test_the_settings_may_lower_the_context(tmp_path: Path) -> None:
    unused_window().save_pretrained(tmp_path)
    limits = context_limits(settings(tmp_path, max_model_len=3))
    assert (limits.max_model_len, limits.vocab_size) == (3, VOCAB)


def test_weights_that_are_pickled_only_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = save_model(next(iter(MAIN.values()))(), tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"no weights in safetensors; .* fetch hub --id <id> --convert"):
        load_model(settings(folder))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def some_llama(folder: Path) -> Path:
    return save_model(MAIN["llama with grouped heads"](), folder)


def test_weights_under_other_names_are_refused_with_both_names(tmp_path: Path) -> None:
    folder = change_weights(some_llama(tmp_path), lambda w: {f"base_model.model.{name}": t for name, t in w.items()})
    with pytest.raises(UnsupportedModelError, match=r"21 weights .* lm_head.weight, .* and 18 more; found base_mod"):
        load_model(settings(folder))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_one_missing_weight_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    folder = change_weights(some_llama(tmp_path), lambda w: {n: t for n, t in w.items() if n != name})
    with pytest.raises(UnsupportedModelError, match=f"1 weights that config.json requires are missing: {name}"):
        load_model(settings(folder))


def test_a_weight_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.embed_tokens.weight"
        return {**weights, name: weights[name][:-3].clone()}

    folder = change_weights(some_llama(tmp_path), cut)
    with pytest.raises(
        UnsupportedModelError, match=r"model.embed_tokens.weight has the shape \[125, 32\], .* \[128, 32\]"
    ):
        load_model(settings(folder))


def test_tied_weights_need_be_there_once(tmp_path: Path) -> None:
    folder = save_model(OTHERS["llama with one head for all"](), tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_model(settings(folder))


def test_weights_without_a_place_are_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = change_weights(some_llama(tmp_path), lambda w: {**w, "model.extra.weight": torch.zeros(2)})
    load_model(settings(folder))
    assert "that the model has no place for: model.extra.weight" in caplog.text


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    with (some_llama(tmp_path) / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(UnsupportedModelError, match="damaged or incomplete"):
        load_model(settings(tmp_path))


def test_a_missing_part_of_the_weights_is_refused_by_its_name(tmp_path: Path) -> None:
    part = "model-00002-of-00002.safetensors"
    (some_llama(tmp_path) / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match=f"names {part}, which is missing"):
        load_model(settings(tmp_path))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "nonesuch"}, r"config.json: transformers [\d.]+ has no model of the type 'nonesuch'; code"),
        ({"model_type": None}, "config.json: no model_type is given"),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            r"config.json: Missing required keys in `rope_parameters` .*factor",
        ),
        ({"hidden_size": "large"}, r"config.json: .*'hidden_size' expected int, got str \(value: 'large'\)"),
        ({"num_attention_heads": 5}, r"config.json: .*hidden size \(32\) is not a multiple of .* heads \(5\)"),
        ({"dtype": "float99"}, r"config.json: .*float99"),
        ({"model_type": "t5"}, "t5: transformers has no model of this type that generates text"),
    ],
    ids=str,
)
@pytest.mark.parametrize("find", [load_model, context_limits])
def test_a_config_that_makes_no_sense_is_refused_in_its_words(
    change: dict[str, object], complaint: str, find: Callable[[EngineConfig], object], tmp_path: Path
) -> None:
    file = some_llama(tmp_path) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UnsupportedModelError, match=complaint) as caught:
        find(settings(tmp_path))
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"config.json: no model_type is given"):
        load_model(settings(tmp_path))


def test_a_checkpoint_that_is_not_there_is_another_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none'"):
        load_model(settings(tmp_path / "none"))


GIB = 2**30


class TestCpuDtype:
    def test_float32_stays(self) -> None:
        assert cpu_dtype(torch.float32, GIB, 100 * GIB) == torch.float32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bits_stay_only_where_the_processor_multiplies_them(self, dtype: torch.dtype) -> None:
        short = str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
        natively = getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported")()
        assert cpu_dtype(dtype, GIB, 4 * GIB) == (dtype if natively else torch.float32)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_16_bits_stay_where_float32_would_take_more_than_half_of_the_memory(self, dtype: torch.dtype) -> None:
        assert cpu_dtype(dtype, GIB, 4 * GIB - 1) == dtype

    def test_a_checkpoint_is_loaded_so(self, tmp_path: Path) -> None:
        folder = save_model(next(iter(MAIN.values()))(), tmp_path / "float32")
        reference_model(folder).bfloat16().save_pretrained(tmp_path)
        loaded = load_model(make_config(model=str(tmp_path), device="cpu"))
        assert loaded.dtype == cpu_dtype(torch.bfloat16, 1, GIB)
        assert load_model(make_config(model=str(tmp_path), device="cpu", dtype="bfloat16")).dtype == torch.bfloat16
