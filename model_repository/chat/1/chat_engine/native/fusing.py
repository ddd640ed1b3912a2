"""Norms, rotary embeddings and gated activations of a model in one pass over their numbers each, on a CPU.

They are known by what they compute, not by the model's name: each is tried beside the model's own with random numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from chat_engine.native.elementwise import Elementwise

_ROTARY = "apply_rotary_pos_emb"
_ROTARY_PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]
_ROWS = 3
# Of the largest number; in 16 bits two roundings.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

Rotary = Callable[..., tuple[Tensor, Tensor]]


@torch.inference_mode()
def fuse(model: nn.Module, operations: Elementwise, dtype: torch.dtype) -> int:
    """Gives modules of a model, in place, a `forward` of fused operations where that computes the same; how many."""
    rotaries: dict[Rotary, Rotary | None] = {}
    count = 0
    for module in model.modules():
        forward = _norm(module, operations, dtype) or _gated(module, operations, dtype)
        own = _rotary_of(module)
        if own is not None:
            if own not in rotaries:
                rotaries[own] = _fused_rotary(own, operations, dtype)
            forward = _with_rotary(module, rotaries[own])
        if forward is not None:
            module.forward = forward
            count += 1
    return count


def _norm(module: nn.Module, operations: Elementwise, dtype: torch.dtype) -> Callable[..., Any] | None:
    """Of a root mean square norm with a weight."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        len(parameters) != 1
        or weight is None
        or weight.dim() != 1
        or weight.dtype != dtype
        or not isinstance(eps, float)
    ):
        return None

    def forward(hidden_states: Tensor) -> Tensor:
        return operations.rms_norm(hidden_states, weight, eps)

    return _if_same(forward, module, len(weight), dtype)


def _gated(module: nn.Module, operations: Elementwise, dtype: torch.dtype) -> Callable[..., Any] | None:
    """Of a feed-forward block with a gate by SiLU (SwiGLU, arXiv:2002.05202)."""
    if not {"gate_proj", "up_proj", "down_proj", "act_fn"} <= dict(module.named_children()).keys():
        return None
    block: Any = module  # its layers may be replaced later

    def forward(x: Tensor) -> Any:
        return block.down_proj(operations.silu_times(block.gate_proj(x), block.up_proj(x)))

    return _if_same(forward, module, block.gate_proj.in_features, dtype)


def _if_same(
    forward: Callable[..., Any], module: nn.Module, inputs: int, dtype: torch.dtype
) -> Callable[..., Any] | None:
    generator = torch.Generator().manual_seed(0)
    x = (1 + torch.randn(1, _ROWS, inputs, generator=generator)).to(dtype)  # a mean that norms may take away
    try:
        agrees = _agree(forward(x), module(x), dtype)
    except (TypeError, ValueError, RuntimeError):  # it wants more than one input, or of another shape
        return None
    return forward if agrees else None


def _agree(made: Any, expected: Any, dtype: torch.dtype) -> bool:
    if not isinstance(expected, Tensor) or expected.shape != made.shape or expected.dtype != made.dtype:
        return False
    return bool((made - expected).abs().max() <= _TOLERANCE[dtype] * expected.abs().max())


def _rotary_of(module: nn.Module) -> Rotary | None:
    """The function by which an attention layer rotates queries and keys, where it is the common one by its name."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return None
    own: Rotary | None = forward.__globals__.get(_ROTARY)
    if own is None or list(inspect.signature(own).parameters) != _ROTARY_PARAMETERS:
        return None
    return own


def _fused_rotary(own: Rotary, operations: Elementwise, dtype: torch.dtype) -> Rotary | None:
    """What computes the same as the model's own function."""

    def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        plain = len(q) == 1 and unsqueeze_dim == 1 and q.stride(3) == k.stride(3) == 1
        if plain and q.dtype == k.dtype == cos.dtype == sin.dtype == dtype and q.shape[3] == cos.shape[2]:
            return operations.rotate(q, k, cos, sin)
        return own(q, k, cos, sin, unsqueeze_dim)

    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, _ROWS, heads, 32, generator=generator).to(dtype).transpose(1, 2) for heads in (4, 2))
    cos, sin = (torch.randn(1, _ROWS, 32, generator=generator).to(dtype) for _ in range(2))
    try:
        pairs = zip(rotary(q, k, cos, sin), own(q, k, cos, sin), strict=True)
        return rotary if all(_agree(made, expected, dtype) for made, expected in pairs) else None
    except (TypeError, ValueError, RuntimeError):
        return None


def _with_rotary(module: nn.Module, rotary: Rotary | None) -> Callable[..., Any] | None:
    """The layer's own code with another function under that name; other models in this process keep theirs."""
    if rotary is None:
        return None
    own = type(module).forward
    assert isinstance(own, FunctionType)
    scope = {**own.__globals__, _ROTARY: rotary}
    changed = FunctionType(own.__code__, scope, own.__name__, own.__defaults__, own.__closure__)
    changed.__kwdefaults__ = own.__kwdefaults__
    return MethodType(changed, module)
