"""What stands between matrix products in one pass: the operations, and which modules of a model get them."""

from __future__ import annotations

import copy
import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama

from chat_engine.native.elementwise import Elementwise
from chat_engine.native.fusing import fuse
from tests.chat_engine.builders import examples

SIZES = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def operations(cpu_library: ctypes.CDLL) -> Elementwise:
    return Elementwise(cpu_library)


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*size, generator=torch.Generator().manual_seed(seed))).to(dtype)


def near(made: Tensor, expected: Tensor) -> bool:
    return torch.allclose(made.float(), expected.float(), atol=TOLERANCE[made.dtype], rtol=TOLERANCE[made.dtype])


# The operations.


@DTYPES
@examples(20)
@given(rows=st.sampled_from([1, 3, 90]), dim=st.sampled_from([1, 7, 16, 48, 768]), seed=st.integers(0, 3))
def test_norm(operations: Elementwise, dtype: torch.dtype, rows: int, dim: int, seed: int) -> None:
    x, weight = random(1, rows, dim, dtype=dtype, seed=seed), random(dim, dtype=dtype, seed=seed + 9)
    assert near(operations.rms_norm(x, weight, 1e-3), F.rms_norm(x.float(), (dim,), weight.float(), 1e-3).to(dtype))


@DTYPES
@examples(20)
@given(rows=st.sampled_from([1, 3, 90]), dim=st.sampled_from([2, 6, 32, 80]), heads=st.sampled_from([(1, 1), (6, 2)]))
def test_rotation(operations: Elementwise, dtype: torch.dtype, rows: int, dim: int, heads: tuple[int, int]) -> None:
    merged = random(1, rows, sum(heads), dim, dtype=dtype)
    q, k = (part.transpose(1, 2) for part in merged.split(heads, dim=2))
    cos, sin = random(1, rows, dim, dtype=dtype, seed=1), random(1, rows, dim, dtype=dtype, seed=2)
    expected = modeling_llama.apply_rotary_pos_emb(q.float(), k.float(), cos.float(), sin.float())
    made = operations.rotate(q, k, cos, sin)
    assert [tensor.shape for tensor in made] == [q.shape, k.shape]
    assert all(near(one, other.to(dtype)) for one, other in zip(made, expected, strict=True))


@DTYPES
@pytest.mark.parametrize("rows", [1, 5, 700])
@pytest.mark.parametrize("dim", [3, 16, 72])
def test_gate(operations: Elementwise, dtype: torch.dtype, rows: int, dim: int) -> None:
    x, y = random(1, rows, 2 * dim, dtype=dtype).split(dim, dim=2)
    x[0, 0, :2] = torch.tensor([-1e30, 1e30])
    assert near(operations.silu_times(x, y), (F.silu(x.float()) * y.float()).to(dtype))


# In a model.


def llama(**options: object) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options))


MODELS = {
    "llama": (llama, 2 * 4 + 1),  # in each layer two norms, a gate, a rotation
    "qwen3, which norms queries and keys": (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=12)), 2 * 6 + 1),
    "another activation": (lambda: llama(hidden_act="gelu"), 2 * 3 + 1),
    "gemma 2, whose norms add one": (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=12)), 2),
    "gpt-neox, which only rotates alike": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)), 2),
}


@DTYPES
@pytest.mark.parametrize("name", MODELS)
def test_what_computes_the_same_takes_the_place_of_a_model_s_own(
    operations: Elementwise, name: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    make, expected = MODELS[name]
    model = make().to(dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a new norm has nothing but ones
    plain = copy.deepcopy(model)
    assert fuse(model, operations, dtype) == expected
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert near(model(ids).logits, plain(ids).logits)
        rows = torch.cat([ids, ids + 5])  # not what the engine asks, and right all the same
        assert near(model(rows).logits, plain(rows).logits)


def test_layers_that_are_replaced_afterwards_are_the_ones_that_compute(operations: Elementwise) -> None:
    """As when weights become 8 bits."""
    model = llama()
    fuse(model, operations, torch.float32)
    block, x = model.model.layers[0].mlp, torch.ones(1, 2, SIZES["hidden_size"])
    for name in ("gate_proj", "up_proj", "down_proj"):
        new = nn.Linear(getattr(block, name).in_features, getattr(block, name).out_features)
        before = block(x)
        setattr(block, name, new)
        assert not torch.equal(block(x), before)


def test_other_models_of_the_process_keep_their_own(operations: Elementwise) -> None:
    before = modeling_llama.apply_rotary_pos_emb
    fuse(llama(), operations, torch.float32)
    assert modeling_llama.apply_rotary_pos_emb is before
    assert "forward" not in vars(llama().model.layers[0].self_attn)


def test_modules_that_only_look_alike_are_left_alone(operations: Elementwise) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return x * gate * self.weight

    class Mean(Norm):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return (x - x.mean(-1, keepdim=True)) * self.weight

    assert fuse(nn.Sequential(Norm(), Mean(), nn.LayerNorm(8)), operations, torch.float32) == 0


@DTYPES
def test_a_norm_that_takes_the_mean_away_is_another(operations: Elementwise, dtype: torch.dtype) -> None:
    """Wide ones hardly differ for numbers whose mean is near 0."""
    assert fuse(nn.LayerNorm(4096, bias=False, dtype=dtype), operations, dtype) == 0
