"""How much fits: tokens of a step, blocks of the KV cache. Pure functions of numbers, without a model or a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError
from chat_engine.native.runner import RunnerLimits

_BLOCK_SIZE = 16
_CPU_STEP_TOKENS = 512
_CUDA_STEP_TOKENS = 2048
_CPU_CACHE_BYTES = 4 << 30
# Of a step, for the logits of prompt tokens, in float32; and so few that a step's scores are no huge message.
_SCORED_LOGITS_BYTES = 128 << 20
_MAX_SCORED_TOKENS = 512
_FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class ModelSize:
    """Of a loaded model, what its memory depends on.

    Attributes:
        context: tokens of one sequence, where the settings name no `max_model_len`.
        vocab_size: number of token ids.
        widest: the most values that a token has at once in any layer.
        num_layers: those that keep keys and values.
        kv_bytes: what all layers together keep of one token.
    """

    context: int
    vocab_size: int
    widest: int
    num_layers: int
    kv_bytes: int


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU, once the weights are on it."""

    free: int
    total: int


@dataclass(frozen=True)
class Paging:
    """How attention reads the cache: by kernels, where it lies, or from copies of the blocks."""

    use_kernels: bool
    block_size: int

    @classmethod
    def of(cls, block_size: int | None, kernels_work: Callable[[int], bool]) -> Paging:
        """By kernels where they work with blocks of that size, or of the usual one."""
        size = block_size or _BLOCK_SIZE
        return cls(kernels_work(size), size)


def runner_limits(config: EngineConfig, size: ModelSize, paging: Paging, gpu: GpuMemory | None) -> RunnerLimits:
    """What the engine may ask of the model on this GPU, or on a CPU.

    Raises ConfigError for settings that do not go together, or that this memory has no room for.
    """
    max_step_tokens = step_tokens(config, on_gpu=gpu is not None)
    max_model_len = config.max_model_len or size.context
    num_blocks = _num_blocks(config, size, paging, gpu)
    capacity = num_blocks * paging.block_size
    if capacity < max_model_len:
        raise ConfigError(
            f"the KV cache holds {capacity} tokens, less than one context of {max_model_len}; "
            "lower max_model_len, or raise kv_cache_tokens or memory_fraction"
        )
    return RunnerLimits(
        max_model_len=max_model_len,
        max_step_tokens=max_step_tokens,
        block_size=paging.block_size,
        num_blocks=num_blocks,
        vocab_size=size.vocab_size,
        max_scored_tokens=scored_tokens(size.vocab_size),
    )


def step_tokens(config: EngineConfig, *, on_gpu: bool) -> int:
    """Tokens of one forward pass. Raises ConfigError where not every sequence could have one."""
    wanted, sequences = config.max_step_tokens, config.max_sequences
    if wanted and wanted < sequences:
        raise ConfigError(
            f"max_step_tokens: {wanted} is less than max_sequences, {sequences}; "
            "each running sequence needs one token per step"
        )
    return max(wanted or (_CUDA_STEP_TOKENS if on_gpu else _CPU_STEP_TOKENS), sequences)


def scored_tokens(vocab_size: int) -> int:
    """Prompt tokens of a step whose logits may be wanted."""
    return max(1, min(_MAX_SCORED_TOKENS, _SCORED_LOGITS_BYTES // (_FLOAT32 * vocab_size)))


def activation_bytes(config: EngineConfig, size: ModelSize) -> int:
    """A generous bound on what a forward pass on a GPU needs besides weights and cache."""
    hidden = 6 * step_tokens(config, on_gpu=True) * size.widest * _FLOAT32
    logits = 6 * config.max_sequences * size.vocab_size * _FLOAT32
    return hidden + logits + 2 * _SCORED_LOGITS_BYTES


def _num_blocks(config: EngineConfig, size: ModelSize, paging: Paging, gpu: GpuMemory | None) -> int:
    if config.kv_cache_tokens:
        return config.kv_cache_tokens // paging.block_size
    # No more than everybody's whole context at once.
    most = config.max_sequences * -(-(config.max_model_len or size.context) // paging.block_size)
    block_bytes = paging.block_size * size.kv_bytes
    if gpu is None:
        return min(most, _CPU_CACHE_BYTES // block_bytes)
    room = gpu.free - int((1 - config.memory_fraction) * gpu.total) - activation_bytes(config, size)
    if not paging.use_kernels:  # copies up to one layer's whole cache
        block_bytes += block_bytes // size.num_layers
    return min(most, max(0, room) // block_bytes)
