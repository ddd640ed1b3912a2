from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chat_engine.errors import ConfigError
from chat_engine.native import proof, weights
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.packing import PackedLinear
from chat_engine.native.weights import Int8Weight, PackedWeight, PlainWeight
from tests.chat_engine.architectures import MAIN
from tests.chat_engine.builders import make_config, make_request, save_model, solo
from tests.chat_engine.test_engine import TOKENIZER

ROWS = [1, 7, 32, 33, 200]


def random(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def off(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("form", [PlainWeight, PackedWeight])
@pytest.mark.parametrize("rows", ROWS)
def test_a_form_changes_no_product(form: type[PlainWeight], rows: int) -> None:
    weight, bias, x = random(24, 40), random(24), random(1, rows, 40)
    assert torch.allclose(form(weight.clone()).product(x, bias), F.linear(x, weight, bias), atol=1e-4)
    assert torch.equal(form(weight.clone()).plain(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [(24, 40), (129, 100), (8, 16), (64, 96)])
def test_a_product_of_8_bits_is_near(size: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    weight, bias, x = random(*size).to(dtype), random(size[0]).to(dtype), random(2, rows, size[1]).to(dtype)
    made = Int8Weight(weight).product(x, bias)
    assert made.dtype == dtype
    assert made.shape == (2, rows, size[0])
    assert off(made, F.linear(x.float(), weight.float(), bias.float())) < 0.02
    assert off(Int8Weight(weight).product(x, None), F.linear(x.float(), weight.float())) < 0.02


def test_each_output_has_its_own_scale() -> None:
    weight = random(4, 32) * torch.tensor([1e-6, 1.0, 1e4, 0.0])[:, None]
    plain = Int8Weight(weight).plain()
    for row in range(3):
        assert off(plain[row], weight[row]) < 0.01
    assert not plain[3].any()
    assert (plain - weight).abs().amax(1).le(weight.abs().amax(1) / 254 * 1.001).all()  # half of a step


def test_few_rows_and_many_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt and the tokens behind it see one model."""
    weight, x = Int8Weight(random(64, 96)), random(20, 96)
    few = weight.product(x, None)
    monkeypatch.setattr(weights, "_FEW_ROWS", 0)
    assert off(few, weight.product(x, None)) < 0.005  # of bfloat16


# A whole model.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MAIN["qwen2"](), tmp_path_factory.mktemp("model"))


def load(folder: Path, **settings: object) -> ModelRunner:
    return ModelRunner(
        make_config(model=str(folder), dtype="float32", device="cpu", block_size=4, kv_cache_tokens=400, **settings)
    )


def test_a_model_in_8_bits_answers_and_says_how_far_it_is_off(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "chat_engine.native.proof"):
        runner = load(folder, quantization="int8")
    (said,) = [record.getMessage() for record in caplog.records if "quantised" in record.getMessage()]
    assert 0 < float(said.split("are ")[1].split("%")[0]) < 10
    linears = [module for module in runner._model.modules() if isinstance(module, PackedLinear)]
    assert linears
    assert all(module._product.weight._panels.dtype == torch.int8 for module in linears)
    assert not [module for module in runner._model.modules() if type(module) is nn.Linear]
    answer = solo(
        lambda: NativeEngine(make_config(), runner, TOKENIZER), make_request("r", [5, 6, 7], 8, ignore_eos=True)
    )
    assert answer.output == 8


def test_a_model_that_rounding_spoils_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_TOLERANCE_QUANTISED", 1e-6)
    with pytest.raises(ConfigError, match=r"quantization: the logits of qwen2 are .*; leave it out"):
        load(folder, quantization="int8")


@pytest.mark.gpu
def test_8_bits_are_for_cpus(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"vllm\.quantization"):
        ModelRunner(make_config(model=str(folder), device="cuda", quantization="int8"))
