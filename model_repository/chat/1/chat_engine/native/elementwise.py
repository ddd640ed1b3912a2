"""What stands between the matrix products of a layer, on a CPU: the way to `cpu/elementwise.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from chat_engine.native.cpu_calls import call, function_of


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "out")),
        ("rows", c_int64), ("dim", c_int32), ("eps", c_float), ("bfloat16", c_int32), ("threads", c_int32),
    )  # fmt: skip


class _Rotary(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "cos", "sin", "q_out", "k_out")),
        *((name, c_int64) for name in ("q_row", "q_head", "k_row", "k_head")),
        *((name, c_int32) for name in ("rows", "q_heads", "k_heads", "dim", "bfloat16", "threads")),
    )


class _Gate(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "y", "out")),
        *((name, c_int64) for name in ("x_row", "y_row", "rows")),
        *((name, c_int32) for name in ("dim", "bfloat16", "threads")),
    )


class _Sum(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "y", "out")),
        ("count", c_int64), ("bfloat16", c_int32), ("threads", c_int32),
    )  # fmt: skip


class Elementwise:
    """Operations of float32 or bfloat16; computed in float32, and rounded where transformers rounds."""

    def __init__(self, library: ctypes.CDLL) -> None:
        names = ("rms_norm", "rotate", "silu_times", "add")
        self._rms_norm, self._rotate, self._silu_times, self._add = (function_of(library, name) for name in names)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (arXiv:1910.07467)."""
        x = x.contiguous()
        out = torch.empty_like(x)
        dim = len(weight)
        told = _Norm(rows=x.numel() // dim, dim=dim, eps=eps, **_kind(x))
        call(self._rms_norm, told, x=x, weight=weight, out=out)
        return out

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary position embedding (arXiv:2104.09864), whose two halves rotate together.

        Args:
            q: `[1, heads, rows, dim]`; `k` alike with the KV heads. The numbers of a head are neighbours.
            cos: `[1, rows, dim]`, as `sin`.
        """
        _, q_heads, rows, dim = q.shape
        k_heads = k.shape[1]
        turned_q, turned_k = q.new_empty(1, rows, q_heads, dim), k.new_empty(1, rows, k_heads, dim)
        told = _Rotary(rows=rows, q_heads=q_heads, k_heads=k_heads, dim=dim, **_kind(q))
        told.q_row, told.q_head, told.k_row, told.k_head = q.stride(2), q.stride(1), k.stride(2), k.stride(1)
        call(
            self._rotate, told,
            q=q, k=k, cos=cos.contiguous(), sin=sin.contiguous(), q_out=turned_q, k_out=turned_k,
        )  # fmt: skip
        return turned_q.transpose(1, 2), turned_k.transpose(1, 2)

    def silu_times(self, x: Tensor, y: Tensor) -> Tensor:
        """`silu(x) * y`, `[..., dim]`; rows may stand in wider ones."""
        out = x.new_empty(x.shape)
        dim = x.shape[-1]
        x, y = x.reshape(-1, dim), y.reshape(-1, dim)
        told = _Gate(x_row=x.stride(0), y_row=y.stride(0), rows=len(x), dim=dim, **_kind(x))
        call(self._silu_times, told, x=x, y=y, out=out)
        return out

    def add(self, x: Tensor, y: Tensor, out: Tensor) -> None:
        """`out = x + y`, of one shape and all contiguous."""
        call(self._add, _Sum(count=x.numel(), **_kind(x)), x=x, y=y, out=out)


def _kind(x: Tensor) -> dict[str, int]:
    return {"bfloat16": x.dtype == torch.bfloat16, "threads": torch.get_num_threads()}
