"""What every contender is given; equal for all, so that only their code differs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

import torch

from benchmarks.workload import DEEPSEEK_7B, LLAMA_82M, LLAMA_500M, Shape


class ModelShape(StrEnum):
    LLAMA_82M = "llama-82m"
    LLAMA_500M = "llama-500m"
    DEEPSEEK_7B = "deepseek-7b"


@dataclass(frozen=True)
class Setting:
    """Of all contenders, as far as they have such a setting.

    Attributes:
        streams: numbers of chats at once that are measured.
        cpus: cores of the engine; none where it computes on a GPU.
        max_step_tokens: of one forward pass; a longer prompt is computed in parts.
        apart: one contender after the other instead of in turns, because the device has room for one.
    """

    shape: Shape
    dtype: str
    streams: tuple[int, ...]
    cpus: tuple[int, ...]
    block_size: int
    kv_cache_bytes: int
    max_step_tokens: int
    enforce_eager: bool
    apart: bool

    @property
    def max_sequences(self) -> int:
        return max(self.streams)

    @property
    def kv_cache_tokens(self) -> int:
        """As many as fit, in whole blocks."""
        token = self.shape.kv_bytes * (2 if self.dtype == "float32" else 1)
        return self.kv_cache_bytes // (token * self.block_size) * self.block_size

    @property
    def max_model_len(self) -> int:
        return self.shape.max_position_embeddings


SETTINGS = {
    ModelShape.LLAMA_82M: Setting(
        LLAMA_82M, "bfloat16", (1, 8, 32), (0, 1), 128, 1 << 30, 512, enforce_eager=True, apart=False
    ),
    ModelShape.LLAMA_500M: Setting(
        LLAMA_500M, "bfloat16", (1, 16), (0, 1), 128, 1 << 30, 512, enforce_eager=True, apart=True
    ),
    ModelShape.DEEPSEEK_7B: Setting(
        DEEPSEEK_7B, "bfloat16", (1, 16, 64, 256), (), 16, 48 << 30, 8192, enforce_eager=False, apart=True
    ),
}

# What models in Triton set for OpenMP (triton_io), and vLLM's workers there inherit. The others get it too: with
# libgomp's own, which spins for long, they were several times slower on busy cores; that is none of the doors' doing.
SPIN_COUNT = "1000"


def cpu_dtype() -> str:
    """What `dtype: auto` of the engine native computes in here; the others would take bf16, many times slower."""
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"  # noqa: SLF001


def thread_environment(cpus: tuple[int, ...]) -> dict[str, str]:
    """Of all processes, as libgomp reads it when it is loaded."""
    return {"GOMP_SPINCOUNT": SPIN_COUNT} | ({"OMP_NUM_THREADS": str(len(cpus))} if cpus else {})


def first_cpus(count: int) -> tuple[int, ...]:
    """So many of those that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0))[:count])
