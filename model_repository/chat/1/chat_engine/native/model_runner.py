"""Everything that touches the device: weights, KV tensors, the forward pass, and sampling at its end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.attention import AttentionBatch, PagedCache, Span, attention_order, varlen_works
from chat_engine.native.generation_defaults import GenerationDefaults
from chat_engine.native.model_loader import load_model, sample_ids
from chat_engine.native.sampler import Sampled, SamplingState, Scored, Targets, sample, score
from chat_engine.request import SamplingParams

log = logging.getLogger(__name__)

_CPU_BLOCK_SIZE = 16
_VARLEN_BLOCK_SIZES = (16, 64, 256)  # flash attention 2 wants a multiple of 256, later ones take less
_CPU_STEP_TOKENS = 512
_CUDA_STEP_TOKENS = 2048
_CPU_CACHE_BYTES = 4 << 30
# Of a step, for the logits of prompt tokens, in float32; and so few that a step's scores are no huge message.
_SCORED_LOGITS_BYTES = 128 << 20
_MAX_SCORED_TOKENS = 512
_WARMUP_SECONDS = 20.0
_GREEDY = SamplingState.start(SamplingParams(temperature=0), 0, frozenset(), ())
# How far the logits of the paged path may lie from those of the model's own attention, relative to their norm.
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 5e-2
_CHECK_TOKENS = 24


@dataclass(frozen=True)
class RunnerLimits:
    """What the loaded model and the device allow; tokens.

    `max_scored_tokens` is how many prompt tokens may have their logits taken in one step.
    """

    max_model_len: int
    max_step_tokens: int
    block_size: int
    num_blocks: int
    vocab_size: int
    max_scored_tokens: int = _MAX_SCORED_TOKENS


@dataclass(frozen=True)
class Row:
    """One sequence's part of a step.

    Attributes:
        tokens: ids to compute.
        length: tokens of the sequence in the cache once these are.
        blocks: its block numbers.
        sampling: None when the chunk ends before the sequence does, or no token is wanted.
        targets: prompt tokens to be scored, where wanted.
    """

    tokens: list[int]
    length: int
    blocks: list[int]
    sampling: SamplingState | None
    targets: Targets | None = None


class Runner(Protocol):
    """A model that computes steps."""

    limits: RunnerLimits
    defaults: GenerationDefaults

    def run(self, rows: list[Row]) -> list[Sampled | Scored | None]:
        """Computes one step: KV of all tokens, the next token of each row that samples, scores where wanted."""
        ...


class ModelRunner:
    """A transformers decoder over the paged cache."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads, checks and warms up.

        Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        self._loaded = load_model(config)
        self._model, self._device = self._loaded.model, self._loaded.device
        use_varlen, block_size = self._attention_backend(config)
        self.limits = self._limits(config, block_size, use_varlen)
        self.defaults = self._loaded.defaults
        self._cache = PagedCache(
            self._loaded.layers, self.limits.num_blocks, block_size, self._loaded.dtype, self._device, use_varlen
        )
        self._check_itself()
        self._warm_up()
        log.info(
            "loaded: %s, %s, context %d, %d blocks of %d tokens, %s attention",
            self._loaded.dtype, self._device, self.limits.max_model_len, self.limits.num_blocks, block_size,
            "varlen" if use_varlen else "sdpa",
        )  # fmt: skip

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> list[Sampled | Scored | None]:
        """See `Runner.run`."""
        order = sorted(range(len(rows)), key=lambda i: attention_order(len(rows[i].tokens), rows[i].length))
        logits, sampling = self._forward([rows[i] for i in order])
        chosen = iter(sample(logits[: len(sampling)], sampling)) if sampling else iter(())
        result: list[Sampled | Scored | None] = [None] * len(rows)
        for i in order:
            if rows[i].sampling:
                result[i] = next(chosen)
        wanted = {i: targets for i in order if (targets := rows[i].targets)}
        if wanted:
            for i, scores in zip(wanted, score(logits[len(sampling) :], list(wanted.values())), strict=True):
                made = result[i]
                result[i] = replace(made, scores=scores) if isinstance(made, Sampled) else Scored(scores)
        return result

    def _forward(self, rows: list[Row]) -> tuple[Tensor, list[SamplingState]]:
        """Logits `[sampling rows, then targets, vocab]` and the rows' states; `rows` stand in attention order."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        wanted: list[int] = []
        scored: list[int] = []
        for row in rows:
            count = len(row.tokens)
            if row.targets:
                first = len(tokens) + row.targets.first
                scored += range(first, first + len(row.targets.token_ids))
            spans.append(Span(len(tokens), count, row.length, row.blocks))
            tokens += row.tokens
            positions += range(row.length - count, row.length)
            if row.sampling:
                wanted.append(len(tokens) - 1)
        wanted += scored
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
            if all(varlen_works(size, heads, s, self._loaded.dtype, self._device) for s in set(self._loaded.layers)):
                return True, size
        return False, config.block_size or _CPU_BLOCK_SIZE

    def _limits(self, config: EngineConfig, block_size: int, use_varlen: bool) -> RunnerLimits:
        default_step = _CUDA_STEP_TOKENS if self._device.type == "cuda" else _CPU_STEP_TOKENS
        step_tokens = max(config.max_step_tokens or default_step, config.max_sequences)
        if config.max_step_tokens and config.max_step_tokens < config.max_sequences:
            raise ConfigError(
                f"max_step_tokens: {config.max_step_tokens} is less than max_sequences, {config.max_sequences}; "
                "each running sequence needs one token a step"
            )
        max_model_len = config.max_model_len or self._loaded.context.usual
        num_blocks = self._num_blocks(config, block_size, max_model_len, use_varlen)
        if num_blocks * block_size < max_model_len:
            raise ConfigError(
                f"the KV cache holds {num_blocks * block_size} tokens, less than one context of {max_model_len}; "
                "lower max_model_len, or raise kv_cache_tokens or memory_fraction"
            )
        vocab_size = self._loaded.vocab_size
        scored = max(1, min(_MAX_SCORED_TOKENS, _SCORED_LOGITS_BYTES // (4 * vocab_size)))
        return RunnerLimits(max_model_len, step_tokens, block_size, num_blocks, vocab_size, scored)

    def _num_blocks(self, config: EngineConfig, block_size: int, max_model_len: int, use_varlen: bool) -> int:
        if config.kv_cache_tokens:
            return config.kv_cache_tokens // block_size
        bytes_per_block = block_size * PagedCache.bytes_per_token(self._loaded.layers, self._loaded.dtype)
        # No more than everybody's whole context at once.
        most = config.max_sequences * -(-max_model_len // block_size)
        if self._device.type == "cpu":
            return min(most, _CPU_CACHE_BYTES // bytes_per_block)
        free, total = torch.cuda.mem_get_info(self._device)
        room = free - int((1 - config.memory_fraction) * total) - self._activation_bytes(config)
        if not use_varlen:  # gathers up to one layer's whole cache
            bytes_per_block += bytes_per_block // len(self._loaded.layers)
        return min(most, max(0, room) // bytes_per_block)

    def _activation_bytes(self, config: EngineConfig) -> int:
        """A generous bound on what a forward pass needs besides weights and cache."""
        text = self._model.config.get_text_config()
        rows = max(config.max_step_tokens or _CUDA_STEP_TOKENS, config.max_sequences)
        widest = max(int(getattr(text, "intermediate_size", 0) or 0), 4 * int(text.hidden_size))
        logits = 6 * config.max_sequences * int(text.vocab_size) * 4 + 2 * _SCORED_LOGITS_BYTES
        return 6 * rows * widest * 4 + logits

    @torch.inference_mode()
    def _check_itself(self) -> None:
        """Compares the paged path, in two chunks, with the model's own attention over the same tokens.

        Raises ConfigError when the model gives no numbers, as float16 may, and UnsupportedModelError when they differ:
        the model then does something between its tokens that paged attention does not know of.
        """
        ids = sample_ids(min(_CHECK_TOKENS, self.limits.max_model_len), self.limits.vocab_size)
        middle, end = max(1, len(ids) * 2 // 3), len(ids)
        blocks = list(range(-(-end // self.limits.block_size)))
        first, _ = self._forward([Row(ids[:middle], middle, blocks, _GREEDY)])
        last, _ = self._forward([Row(ids[middle:], end, blocks, _GREEDY)])
        paged = torch.cat([first, last]).float()
        if not paged.isfinite().all():
            raise ConfigError(f"dtype: the model's logits are not finite in {self._loaded.dtype}; try another dtype")
        own = self._loaded.own_logits(ids)[[middle - 1, end - 1]]
        error = float((paged - own).norm() / own.norm())
        if not error < _TOLERANCE.get(self._loaded.dtype, _TOLERANCE_16_BIT):
            kind = self._model.config.model_type
            raise UnsupportedModelError(
                f"{kind}: paged attention gives other logits than the model's own ({error:.0%} off)"
            )

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
