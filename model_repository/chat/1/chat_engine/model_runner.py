"""Everything that touches the device: weights, KV tensors, the forward pass, and sampling at its end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from chat_engine.attention import (
    IMPLEMENTATION,
    AttentionBatch,
    LayerProbe,
    LayerShape,
    PagedCache,
    Span,
    attention_order,
    varlen_works,
)
from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.request import SamplingParams
from chat_engine.sampler import Sampled, SamplingState, sample

log = logging.getLogger(__name__)

_CPU_BLOCK_SIZE = 16
_VARLEN_BLOCK_SIZES = (16, 64, 256)  # flash attention 2 wants a multiple of 256, later ones take less
_CPU_STEP_TOKENS = 512
_CUDA_STEP_TOKENS = 2048
_CPU_CACHE_BYTES = 4 << 30
_WARMUP_SECONDS = 20.0
_GREEDY = SamplingState.start(SamplingParams(temperature=0), 0, frozenset(), ())
# Rope types whose frequencies change for everybody in the batch when one sequence grows long.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# Chunked attention, or a state carried along the sequence, would be silently wrong for packed sequences.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class RunnerLimits:
    """What the loaded model and the device allow; tokens."""

    max_model_len: int
    max_step_tokens: int
    block_size: int
    num_blocks: int
    vocab_size: int


@dataclass(frozen=True)
class Row:
    """One sequence's part of a step.

    Attributes:
        tokens: ids to compute.
        length: tokens of the sequence in the cache once these are.
        blocks: its block numbers.
        sampling: None when the chunk ends before the sequence does.
    """

    tokens: list[int]
    length: int
    blocks: list[int]
    sampling: SamplingState | None


class Runner(Protocol):
    """A model that computes steps."""

    limits: RunnerLimits
    eos_ids: frozenset[int]
    sampling_defaults: dict[str, object]

    def run(self, rows: list[Row]) -> list[Sampled | None]:
        """Computes one step: KV of all tokens, and the next token of each row that samples."""
        ...


class ModelRunner:
    """A transformers decoder over the paged cache."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads, checks and warms up.

        Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        self._device = _device(config.device)
        self._model = _load(config, self._device)
        self._layers = _probe(self._model, self._device)
        use_varlen, block_size = self._attention_backend(config)
        self.limits = self._limits(config, block_size)
        self.eos_ids, self.sampling_defaults = _generation_defaults(self._model)
        self._cache = PagedCache(
            self._layers, self.limits.num_blocks, block_size, self._model.dtype, self._device, use_varlen
        )
        self._answer_canary()
        self._warm_up()
        log.info(
            "loaded: %s, %s, context %d, %d blocks of %d tokens, %s attention",
            self._model.dtype, self._device, self.limits.max_model_len, self.limits.num_blocks, block_size,
            "varlen" if use_varlen else "sdpa",
        )  # fmt: skip

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> list[Sampled | None]:
        """See `Runner.run`."""
        order = sorted(range(len(rows)), key=lambda i: attention_order(len(rows[i].tokens), rows[i].length))
        logits, sampling = self._forward([rows[i] for i in order])
        chosen = iter(sample(logits, sampling)) if sampling else iter(())
        result: list[Sampled | None] = [None] * len(rows)
        for i in order:
            if rows[i].sampling:
                result[i] = next(chosen)
        return result

    def _forward(self, rows: list[Row]) -> tuple[Tensor, list[SamplingState]]:
        """Logits `[sampling rows, vocab]` and their states; `rows` stand in attention order."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        for row in rows:
            count = len(row.tokens)
            spans.append(Span(len(tokens), count, row.length, row.blocks))
            tokens += row.tokens
            positions += range(row.length - count, row.length)
            if row.sampling:
                wanted.append(len(tokens) - 1)
        sampling = [row.sampling for row in rows if row.sampling]
        batch = AttentionBatch(self._cache, spans, len(tokens), self._device)
        padding = [0] * (self._padded(len(tokens)) - len(tokens))
        keep = wanted + [0] * (self._padded(len(wanted)) - len(wanted))
        logits = self._model(
            input_ids=self._tensor(tokens + padding)[None],
            position_ids=self._tensor(positions + padding)[None],
            use_cache=False,
            logits_to_keep=self._tensor(keep or [0]),
            paged=batch,
        ).logits
        return logits[0, : len(wanted)], sampling

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _padded(self, count: int) -> int:
        """On CPU a new shape costs a set-up, so row counts are rounded up to four sizes per power of two."""
        if self._device.type != "cpu":
            return count
        step = 1 << max(0, count.bit_length() - 3)
        return -(-count // step) * step

    def _attention_backend(self, config: EngineConfig) -> tuple[bool, int]:
        heads = int(self._model.config.get_text_config().num_attention_heads)
        for size in (config.block_size,) if config.block_size else _VARLEN_BLOCK_SIZES:
            if all(varlen_works(size, heads, s, self._model.dtype, self._device) for s in set(self._layers)):
                return True, size
        return False, config.block_size or _CPU_BLOCK_SIZE

    def _limits(self, config: EngineConfig, block_size: int) -> RunnerLimits:
        default_step = _CUDA_STEP_TOKENS if self._device.type == "cuda" else _CPU_STEP_TOKENS
        step_tokens = max(config.max_step_tokens or default_step, config.max_sequences)
        if config.max_step_tokens and config.max_step_tokens < config.max_sequences:
            raise ConfigError(
                f"max_step_tokens: {config.max_step_tokens} is less than max_sequences, {config.max_sequences}; "
                "each running sequence needs one token a step"
            )
        max_model_len = _context_limit(config, self._model.config.get_text_config())
        num_blocks = self._num_blocks(config, block_size, max_model_len)
        if num_blocks * block_size < max_model_len:
            raise ConfigError(
                f"the KV cache holds {num_blocks * block_size} tokens, less than one context of {max_model_len}; "
                "lower max_model_len, or raise kv_cache_tokens or memory_fraction"
            )
        vocab_size = int(self._model.config.get_text_config().vocab_size)
        return RunnerLimits(max_model_len, step_tokens, block_size, num_blocks, vocab_size)

    def _num_blocks(self, config: EngineConfig, block_size: int, max_model_len: int) -> int:
        if config.kv_cache_tokens:
            return config.kv_cache_tokens // block_size
        bytes_per_block = block_size * PagedCache.bytes_per_token(self._layers, self._model.dtype)
        # No more than everybody's whole context at once.
        most = config.max_sequences * -(-max_model_len // block_size)
        if self._device.type == "cpu":
            return min(most, _CPU_CACHE_BYTES // bytes_per_block)
        free, total = torch.cuda.mem_get_info(self._device)
        room = free - int((1 - config.memory_fraction) * total) - self._activation_bytes(config)
        return min(most, max(0, room) // bytes_per_block)

    def _activation_bytes(self, config: EngineConfig) -> int:
        """A generous bound on what a forward pass needs besides weights and cache."""
        text = self._model.config.get_text_config()
        rows = max(config.max_step_tokens or _CUDA_STEP_TOKENS, config.max_sequences)
        widest = max(int(getattr(text, "intermediate_size", 0) or 0), 4 * int(text.hidden_size))
        return 6 * rows * widest * 4 + 6 * config.max_sequences * int(text.vocab_size) * 4

    @torch.inference_mode()
    def _answer_canary(self) -> None:
        """One token through the whole path. Raises ConfigError when the model gives no numbers, as float16 may."""
        logits, _ = self._forward([Row([0], 1, [0], _GREEDY)])
        if not logits.isfinite().all():
            raise ConfigError(f"dtype: the model's logits are not finite in {self._model.dtype}; try another dtype")

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Runs each padded shape once, largest first, so that the first users do not pay for it; at most 20 s.

        On the real cache: whatever it writes is overwritten before anyone reads it.
        """
        begin = time.monotonic()
        largest = (
            self.limits.max_step_tokens if self._device.type == "cuda" else self._padded(self.limits.max_step_tokens)
        )
        capacity = self.limits.num_blocks * self.limits.block_size
        largest = min(largest, capacity, self.limits.max_model_len)
        # A padded shape may be more than one sequence can hold; the pass itself pads the largest.
        shapes = {min(self._padded(n), largest) for n in range(1, largest + 1)}
        sizes = sorted(shapes if self._device.type == "cpu" else {1, largest})
        for size in reversed(sizes):
            blocks = list(range(-(-size // self.limits.block_size)))
            self._forward([Row([0] * size, size, blocks, _GREEDY)])
            if time.monotonic() - begin > _WARMUP_SECONDS:
                log.info("warm-up stopped after %.0f s, before shapes below %d tokens", _WARMUP_SECONDS, size)
                return


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is set, but torch sees no GPU here")
    return device


def _load(config: EngineConfig, device: torch.device) -> PreTrainedModel:
    checkpoint: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            config.model, dtype=dtype, attn_implementation=IMPLEMENTATION, use_safetensors=True, **checkpoint
        )
    except KeyError as error:  # a class with a table of its own attention implementations
        raise UnsupportedModelError(f"the model's code has no attention implementation {error}") from error
    model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    return model


@torch.inference_mode()
def _probe(model: PreTrainedModel, device: torch.device) -> list[LayerShape]:
    """The attention layers, found out by one trial forward pass.

    Raises UnsupportedModelError when the model does not attend through transformers' interface, or needs more.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if model._is_stateful or kinds - _LAYER_TYPES:  # noqa: SLF001
        raise UnsupportedModelError(
            f"{model.config.model_type}: layers that do more than plain or sliding attention are not supported"
        )
    probe = LayerProbe()
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    try:
        model(input_ids=ids, position_ids=torch.arange(2, device=device)[None], use_cache=False, paged=probe)
    except (TypeError, AttributeError, AssertionError) as error:
        raise UnsupportedModelError(f"{model.config.model_type}: cannot run on paged attention: {error}") from error
    count = int(model.config.get_text_config().num_hidden_layers)
    if sorted(probe.layers) != list(range(count)):
        raise UnsupportedModelError(
            f"{model.config.model_type}: {len(probe.layers)} of {count} layers attend through transformers' attention "
            "interface; models with other kinds of layers are not supported"
        )
    return [probe.layers[index] for index in range(count)]


def _context_limit(config: EngineConfig, text: PretrainedConfig) -> int:
    limit = int(text.max_position_embeddings)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        limit = min(limit, int(rope.get("original_max_position_embeddings") or limit))
    if config.max_model_len and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len: {config.max_model_len} is more than the {limit} tokens that the model can do"
        )
    return config.max_model_len or limit


def _generation_defaults(model: PreTrainedModel) -> tuple[frozenset[int], dict[str, object]]:
    """End-of-answer ids, and the sampling that `transformers.generate` would use, from `generation_config.json`."""
    generation: GenerationConfig = model.generation_config
    eos = generation.eos_token_id
    if eos is None:
        eos = getattr(model.config.get_text_config(), "eos_token_id", None)
    ids = frozenset([eos] if isinstance(eos, int) else eos or [])
    if not generation.do_sample:
        return ids, {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    chosen = {name: getattr(generation, name, None) for name in names}
    return ids, {name: value for name, value in chosen.items() if value is not None}
