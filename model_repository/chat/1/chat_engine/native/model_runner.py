"""Everything that touches the device: weights, KV tensors, the forward pass, and sampling at its end."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from chat_engine.config import EngineConfig
from chat_engine.native.attention import AttentionBatch, PagedCache, Span, attention_order, varlen_works
from chat_engine.native.masks import MaskFiller
from chat_engine.native.memory import GpuMemory, ModelSize, Paging, choose_paging, runner_limits
from chat_engine.native.model_loader import LoadedModel, load_model
from chat_engine.native.proof import prove, warm_up
from chat_engine.native.runner import Row
from chat_engine.native.sampler import Sampled, Scored, sample, score

log = logging.getLogger(__name__)


class ModelRunner:
    """A transformers decoder over the paged cache."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads, finds out what fits, checks itself and warms up.

        Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint.
        """
        if config.threads:
            torch.set_num_threads(config.threads)
        loaded = load_model(config)
        self._model, self._device = loaded.model, loaded.device
        self.defaults = loaded.defaults
        paging = _paging(loaded, config)
        self.limits = runner_limits(config, _size(loaded), paging, _gpu_memory(loaded.device))
        self._cache = PagedCache(
            loaded.layers, self.limits.num_blocks, paging.block_size, loaded.dtype, loaded.device, paging.use_varlen
        )
        self._masks = MaskFiller(self.limits.vocab_size, loaded.device)
        prove(loaded, self.limits, self._logits)
        self.longest_pass = warm_up(self._warm_up_sizes(), paging.block_size, self._logits)
        log.info(
            "loaded: %s, %s, context %d, %d blocks of %d tokens, %s attention",
            loaded.dtype, loaded.device, self.limits.max_model_len, self.limits.num_blocks, paging.block_size,
            "varlen" if paging.use_varlen else "sdpa",
        )  # fmt: skip

    @torch.inference_mode()
    def run(self, rows: list[Row]) -> list[Sampled | Scored | None]:
        """See `Runner.run`."""
        order = sorted(range(len(rows)), key=lambda i: attention_order(len(rows[i].tokens), rows[i].length))
        sampling = [state for i in order if (state := rows[i].sampling)]
        with self._masks.filling(sampling) as masks:  # while the model computes
            logits = self._forward([rows[i] for i in order])
            chosen = iter(sample(logits[: len(sampling)], sampling, masks)) if sampling else iter(())
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

    def _forward(self, rows: list[Row]) -> Tensor:
        """Logits `[sampling rows, then targets, vocab]`; `rows` stand in attention order."""
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
        return torch.as_tensor(logits[0, : len(wanted)])

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def _padded(self, count: int) -> int:
        """On CPU a new shape costs a set-up, so row counts are rounded up to four sizes per power of two."""
        if self._device.type != "cpu":
            return count
        step = 1 << max(0, count.bit_length() - 3)
        return -(-count // step) * step

    def _logits(self, row: Row) -> Tensor:
        return self._forward([row])

    def _warm_up_sizes(self) -> list[int]:
        """The passes to warm up, largest first: on a CPU every padded shape, elsewhere the two ends."""
        limits = self.limits
        most = self._padded(limits.max_step_tokens)
        largest = min(most, limits.num_blocks * limits.block_size, limits.max_model_len)
        if self._device.type != "cpu":
            return sorted({1, largest}, reverse=True)
        # A padded shape may be more than one sequence can hold; the pass itself pads the largest.
        return sorted({min(self._padded(n), largest) for n in range(1, largest + 1)}, reverse=True)


def _paging(loaded: LoadedModel, config: EngineConfig) -> Paging:
    heads = int(loaded.model.config.get_text_config().num_attention_heads)

    def works(block_size: int) -> bool:
        shapes = set(loaded.layers)
        return all(varlen_works(block_size, heads, shape, loaded.dtype, loaded.device) for shape in shapes)

    return choose_paging(config.block_size, works)


def _size(loaded: LoadedModel) -> ModelSize:
    text = loaded.model.config.get_text_config()
    return ModelSize(
        context=loaded.context.usual,
        vocab_size=loaded.vocab_size,
        widest=max(int(getattr(text, "intermediate_size", 0) or 0), 4 * int(text.hidden_size)),
        num_layers=len(loaded.layers),
        kv_bytes=PagedCache.bytes_per_token(loaded.layers, loaded.dtype),
    )


def _gpu_memory(device: torch.device) -> GpuMemory | None:
    return None if device.type == "cpu" else GpuMemory(*torch.cuda.mem_get_info(device))
