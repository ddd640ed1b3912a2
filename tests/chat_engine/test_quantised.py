"""Checkpoints of quantised weights, made here in the forms that are published."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from torch import Tensor

from chat_engine.errors import UnsupportedModelError
from chat_engine.native.model_loader import load_model
from chat_engine.native.model_runner import ModelRunner
from tests.chat_engine.architectures import MAIN
from tests.chat_engine.builders import make_config, save_model

BLOCK = 16
Stored = dict[str, Tensor]


def int8(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
    """Each output with a scale."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    whole = (weight / scale).round().to(torch.int8)
    return {name: whole, f"{name}_scale": scale}, whole * scale


def int4(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
    """Each `BLOCK` inputs of an output with a scale; eight numbers in one of 32 bits."""
    blocks = weight.view(len(weight), -1, BLOCK)
    scale = blocks.abs().amax(-1) / 7
    whole = (blocks / scale[..., None]).round().to(torch.int8)
    packed = pack_to_int32(whole.view_as(weight), 4)
    plain = (whole * scale[..., None]).view_as(weight)
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": torch.tensor(weight.shape)}, plain


def fp8(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
    """Each block of `BLOCK` by `BLOCK` with a scale."""
    outputs, inputs = weight.shape
    blocks = weight.view(outputs // BLOCK, BLOCK, inputs // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
    small = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (small.float() * scale[:, None, :, None]).view_as(weight)
    return {name: small.view_as(weight), f"{name}_scale_inv": scale}, plain


def fp8_of_outputs(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
    """Each output with a scale."""
    scale = weight.abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    small = (weight / scale).to(torch.float8_e4m3fn)
    return {name: small, f"{name}_scale": scale}, small.float() * scale


def compressed(form: str, **further: object) -> dict[str, Any]:
    weights = {"type": "int", "symmetric": True, "dynamic": False, **further}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


FORMS: dict[str, tuple[Callable[[str, Tensor], tuple[Stored, Tensor]], dict[str, Any]]] = {
    "int8": (int8, compressed("int-quantized", num_bits=8, strategy="channel")),
    "int4": (int4, compressed("pack-quantized", num_bits=4, strategy="group", group_size=BLOCK)),
    "compressed fp8": (
        fp8_of_outputs,
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    ),
    "fp8": (fp8, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}),
}


def change_config(folder: Path, how: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": how}))


def quantised(folder: Path, form: str) -> dict[str, Tensor]:
    """Quantises a checkpoint in place. The result: its weights as they are to be read."""
    make, how = FORMS[form]
    stored, plain = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        entries, plain[name] = make(name, weight) if name.endswith("_proj.weight") else ({name: weight}, weight)
        stored.update(entries)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    change_config(folder, how)
    return plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(MAIN["qwen2"](), tmp_path / "model")


def settings(folder: Path, **others: object) -> Any:
    return make_config(model=str(folder), device="cpu", block_size=4, kv_cache_tokens=400, **others)


@pytest.mark.parametrize("form", FORMS)
def test_the_weights_are_those_that_were_quantised(folder: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    before = load_model(settings(folder, dtype="float32")).model.state_dict()
    expected = quantised(folder, form)
    with caplog.at_level(logging.INFO, "chat_engine.native.quantised"):
        model = load_model(settings(folder, dtype="float32")).model
    read = model.state_dict()
    assert {weight.dtype for weight in read.values()} == {torch.float32}
    changed = [name for name in expected if not torch.equal(read[name], before[name])]
    assert changed == [name for name in expected if name.endswith("_proj.weight")]
    for name in changed:
        assert torch.allclose(read[name], expected[name], rtol=1e-2, atol=1e-6), name  # scales pass through bfloat16
    assert "are made plain ones while they load" in caplog.text


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("further", [{"dtype": "bfloat16"}, {"dtype": "float32", "quantization": "int8"}])
def test_the_engine_computes_with_them(folder: Path, form: str, further: dict[str, Any]) -> None:
    """It compares itself with the model's own way to compute when it loads."""
    quantised(folder, form)
    runner = ModelRunner(settings(folder, **further))
    assert runner._model.dtype == getattr(torch, further["dtype"])


@pytest.mark.parametrize("form", FORMS)
def test_weights_without_their_scale_are_refused(folder: Path, form: str) -> None:
    quantised(folder, form)
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if "_scale" in name)
    del stored[name]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"1 quantised weights have no scale: .*_proj\.weight"):
        load_model(settings(folder))


def test_an_order_of_inputs_is_refused(folder: Path) -> None:
    quantised(folder, "int4")
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight_g_idx"] = torch.zeros(32, dtype=torch.int32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight_g_idx belongs to a form .*; use the engine vllm"):
        load_model(settings(folder))


def test_several_forms_are_refused(folder: Path) -> None:
    quantised(folder, "int8")
    how = compressed("int-quantized", num_bits=8, strategy="channel")
    how["config_groups"]["group_1"] = compressed("", num_bits=4, strategy="group")["config_groups"]["group_0"]
    change_config(folder, how)
    with pytest.raises(UnsupportedModelError, match=r"in several forms .*; use a checkpoint with one form"):
        load_model(settings(folder))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", None])
def test_other_forms_are_refused(folder: Path, method: str | None) -> None:
    change_config(folder, {"quant_method": method, "bits": 4})
    with pytest.raises(UnsupportedModelError, match=rf"quantised \({method}\), which .* cannot read; use"):
        load_model(settings(folder))


@pytest.mark.parametrize(
    "how",
    [
        compressed("nonesuch", num_bits=8, strategy="channel"),
        compressed("int-quantized", num_bits=8, strategy="nonesuch"),
        {"quant_method": "fp8", "weight_block_size": [5]},
    ],
)
def test_nonsense_is_refused(folder: Path, how: dict[str, Any]) -> None:
    quantised(folder, "int8" if "format" in how else "fp8")
    change_config(folder, how)
    with pytest.raises(UnsupportedModelError, match=r"quantization_config does not fit.*; fetch the"):
        load_model(settings(folder))
