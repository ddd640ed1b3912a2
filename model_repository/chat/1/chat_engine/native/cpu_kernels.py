"""Attention over the paged cache where it lies, on a CPU: the way to `cpu/attention.cpp`.

`make` compiles it beforehand, once for each set of instructions that makes a difference.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from chat_engine.native.attention_kernels import LayerAttention
from chat_engine.native.cpu_calls import Function, call, function_of
from chat_engine.native.step_inputs import StepInputs

log = logging.getLogger(__name__)

_FOLDER = Path(__file__).with_name("cpu")
_TYPES = (torch.float32, torch.bfloat16)
# Query rows of a wide tile, each head of them that shares a KV head counted: what is read for them stays in a core's
# caches, and is read often enough.
_WIDE_ROWS = 128


class CpuKernels:
    """See `Kernels`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._attend = function_of(library, "attend")

    @classmethod
    def find(cls, dtype: torch.dtype, capability: str | None = None) -> CpuKernels | None:
        """Those for this processor, or for `capability`; None where none were compiled, or none are for this type."""
        library = _library(capability or cpu_capability())
        return cls(library) if library is not None and dtype in _TYPES else None

    def wide_rows(self, group: int) -> int:
        """See `Kernels.wide_rows`."""
        return max(1, _WIDE_ROWS // group)

    def attention(self, step: StepInputs) -> LayerAttention:
        """See `Kernels.attention`."""
        return _LayerAttention(self._attend, step)


class _Attention(ctypes.Structure):
    """Mirror of `Attention` in `cpu/attention.cpp`."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "keys", "values", "out", "narrow", "wide")),
        *((name, c_void_p) for name in ("positions", "slots", "parts", "blocks", "partial", "weight")),
        *((name, c_int64) for name in ("q_row", "q_head", "k_row", "k_head", "v_row", "v_head")),
        *((name, c_int32) for name in ("rows", "num_narrow", "num_wide", "decodes", "kv_heads", "group")),
        *((name, c_int32) for name in ("key_dim", "value_dim", "block_size", "window", "bfloat16", "threads")),
        ("scale", c_float),
    )


class _LayerAttention:
    """One step; what is the same for all layers is told once."""

    def __init__(self, function: Function, step: StepInputs) -> None:
        self._function = function
        self._step = step
        self._told = told = _Attention()
        for name in ("positions", "slots", "parts", "blocks", "narrow", "wide"):
            setattr(told, name, getattr(step, name).data_ptr())
        told.num_narrow, told.num_wide, told.decodes = len(step.narrow), len(step.wide), len(step.parts)
        told.threads = torch.get_num_threads()

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        told = self._told
        rows, heads, key_dim = q.shape
        _, block_size, kv_heads, value_dim = values.shape
        out = q.new_empty(rows, heads, value_dim)
        told.q_row, told.q_head, _ = q.stride()
        told.k_row, told.k_head, _ = k.stride()
        told.v_row, told.v_head, _ = v.stride()
        told.rows, told.kv_heads, told.group = rows, kv_heads, heads // kv_heads
        told.key_dim, told.value_dim, told.block_size = key_dim, value_dim, block_size
        told.window, told.bfloat16, told.scale = window or 0, q.dtype == torch.bfloat16, scale
        parts = {}
        if self._step.most_parts:
            places = self._step.most_parts * told.decodes * heads
            parts = {"partial": q.new_empty(places, value_dim, dtype=torch.float32), "weight": torch.empty(places)}
        call(self._function, told, q=q, k=k, v=v, keys=keys, values=values, out=out, **parts)
        return out


def cpu_capability() -> str:
    """The best set of instructions that this processor has, of those that make a difference here."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    if best == "avx512" and torch.cpu._is_avx512_bf16_supported():  # noqa: SLF001
        return "avx512_bf16"
    return best if best in ("avx2", "avx512") else "default"


@functools.cache
def _library(capability: str) -> ctypes.CDLL | None:
    path = _FOLDER / f"kernels-{capability}.so"
    try:
        library = ctypes.CDLL(str(path)) if path.exists() else None
    except OSError as error:  # compiled on another system
        log.warning("%s does not load here, which is slower: %s", path.name, error)
        return None
    if library is None:
        log.warning("there is no %s, which is slower: `make cpu-kernels` compiles it", path.name)
        return None
    return library
