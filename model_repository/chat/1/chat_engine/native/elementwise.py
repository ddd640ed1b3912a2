"""What stands between the matrix products of a layer, on a CPU: the way to `cpu/elementwise.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

_ARGUMENTS = {
    "rms_norm": (c_void_p, c_void_p, c_void_p, c_int64, c_int32, c_float, c_int32, c_int32),
    "rotate": (*(c_void_p,) * 6, *(c_int64,) * 4, *(c_int32,) * 6),
    "silu_times": (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int32, c_int32, c_int32),
}


class Elementwise:
    """Operations of float32 or bfloat16; computed in float32, and rounded where transformers rounds."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, types in _ARGUMENTS.items():
            function = getattr(library, f"chat_engine_{name}")
            function.argtypes, function.restype = types, None
        self._rms_norm = library.chat_engine_rms_norm
        self._rotate = library.chat_engine_rotate
        self._silu_times = library.chat_engine_silu_times

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension (arXiv:1910.07467)."""
        x = x.contiguous()
        out = torch.empty_like(x)
        dim = len(weight)
        self._rms_norm(
            x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // dim, dim, eps, *_kind(x)
        )  # fmt: skip
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
        cos, sin = cos.contiguous(), sin.contiguous()
        self._rotate(
            q.data_ptr(), k.data_ptr(), cos.data_ptr(), sin.data_ptr(), turned_q.data_ptr(), turned_k.data_ptr(),
            q.stride(2), q.stride(1), k.stride(2), k.stride(1), rows, q_heads, k_heads, dim, *_kind(q),
        )  # fmt: skip
        return turned_q.transpose(1, 2), turned_k.transpose(1, 2)

    def silu_times(self, x: Tensor, y: Tensor) -> Tensor:
        """`silu(x) * y`, `[..., dim]`; rows may stand in wider ones."""
        out = x.new_empty(x.shape)
        dim = x.shape[-1]
        x, y = x.reshape(-1, dim), y.reshape(-1, dim)
        self._silu_times(
            x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), out.data_ptr(), len(x), dim, *_kind(x)
        )  # fmt: skip
        return out


def _kind(x: Tensor) -> tuple[bool, int]:
    return x.dtype == torch.bfloat16, torch.get_num_threads()
