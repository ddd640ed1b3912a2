from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chat_engine.config import EngineConfig
from chat_engine.errors import UnsupportedModelError
from chat_engine.model_loader import context_limits, cpu_dtype, load_model
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
    assert (limits.max_model_len, limits.vocab_size) == (loaded.max_positions, loaded.vocab_size)


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
