"""Everything that touches the device: weights, KV tensors, the forward pass, and sampling at its end."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from chat_engine.answering.telling import Logprobs
from chat_engine.config import EngineConfig
from chat_engine.native.attention_kernels import Kernels
from chat_engine.native.cpu_kernels import CpuKernels
from chat_engine.native.cpu_products import CpuProducts
from chat_engine.native.decode_graphs import cuda_capture
from chat_engine.native.elementwise import Elementwise
from chat_engine.native.fusing import fuse
from chat_engine.native.masks import MaskFiller
from chat_engine.native.memory import GpuMemory, ModelSize, Paging, runner_limits
from chat_engine.native.model_loader import LoadedModel, load_model
from chat_engine.native.paged_cache import PagedCache
from chat_engine.native.passes import SHAPES, ForwardPass, PaddedPass, attention_order
from chat_engine.native.proof import Proof, step_seconds, warm_up
from chat_engine.native.recording import Recorder
from chat_engine.native.runner import Row
from chat_engine.native.sampler import Draw, Sampled, SamplingState, Scored, score
from chat_engine.native.tiled import find_kernels, kernels_work
from chat_engine.native.tiled_pass import TiledPass

log = logging.getLogger(__name__)

# A step beside which it is nothing what Python and the doors do.
_LONG_S = 0.1


class ModelStep:
    """See `Started`.

    Args:
        rows: how many there are.
        sampled: the row of each token; guesses give a row several.
        draw: of their tokens.
        scores: of the prompt tokens of rows, where wanted.
    """

    def __init__(
        self, rows: int, sampled: list[int], draw: Draw | None, scores: dict[int, tuple[Logprobs, ...]]
    ) -> None:
        self.sampled = sampled
        self._rows = rows
        self._draw = draw
        self._scores = scores
        self.stale: list[int] = []

    def results(self) -> list[Sampled | Scored | None]:
        """See `Started.results`."""
        results: list[Sampled | Scored | None] = [None] * self._rows
        if self._draw:
            tokens, stale = self._draw.tokens()
            self.stale = [self.sampled[place] for place in stale]
            for i, token in zip(self.sampled, tokens, strict=True):
                first = results[i]
                behind = (*first.behind_guesses, token) if isinstance(first, Sampled) else ()
                results[i] = replace(first, behind_guesses=behind) if isinstance(first, Sampled) else token
            self._draw = None  # its logits
        for i, scores in self._scores.items():
            made = results[i]
            results[i] = replace(made, scores=scores) if isinstance(made, Sampled) else Scored(scores)
        return results


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
        proof = Proof(loaded, config.max_model_len)
        kernels = find_kernels(loaded.device, loaded.dtype)
        products = None
        if isinstance(kernels, CpuKernels) and (config.quantization or loaded.suits_own_products):
            products = CpuProducts(kernels.library)
        if not config.quantization:
            loaded.pack(products)
        if isinstance(kernels, CpuKernels):
            fuse(loaded.model, Elementwise(kernels.library), loaded.dtype)
        paging = _paging(loaded, config, kernels)
        self.limits = runner_limits(config, _size(loaded), paging, _gpu_memory(loaded.device))
        self._cache = PagedCache(
            loaded.layers, self.limits.num_blocks, paging.block_size, loaded.dtype, loaded.device, paging.use_kernels
        )
        self._masks = MaskFiller(self.limits.vocab_size, loaded.device)
        shapes = SHAPES if loaded.device.type == "cpu" and products is None else None
        self._forward = self._forward_pass(config, kernels if paging.use_kernels else None, shapes)
        self.runs_ahead = config.async_scheduling and self._forward.runs_ahead
        self._last = ModelStep(0, [], None, {})
        proof.check(self._logits, paging.block_size)
        if config.quantization:
            loaded.quantise(products)
            proof.check_quantised(self._logits, paging.block_size)
        most = min(self.limits.max_step_tokens, self.limits.num_blocks * paging.block_size, self.limits.max_model_len)
        self.longest_pass = warm_up(self._forward.sizes(most), paging.block_size, self._logits)
        self._settle(kernels)
        log.info(
            "loaded: %s, %s, context %d, %d blocks of %d tokens, %s attention",
            loaded.dtype, loaded.device, self.limits.max_model_len, self.limits.num_blocks, paging.block_size,
            "tiled" if paging.use_kernels else "copying",
        )  # fmt: skip

    @torch.inference_mode()
    def start(self, rows: list[Row]) -> ModelStep:
        """See `Runner.start`."""
        rows = self._with_places(rows)
        order, beginnings = attention_order(rows, self._cache)
        sampling = [(i, state) for i in order for state in _states(rows[i])]
        targets = {i: targets for i in order if (targets := rows[i].targets)}
        states = [state for _, state in sampling]
        with self._masks.filling(states) as masks:  # while the model computes
            logits = self._forward([rows[i] for i in order], beginnings)
            draw = Draw(logits[: len(states)], states, masks, keep=self.runs_ahead) if states else None
        scores = score(logits[len(states) :], list(targets.values())) if targets else []
        self._last = ModelStep(len(rows), [i for i, _ in sampling], draw, dict(zip(targets, scores, strict=True)))
        if draw:
            self._forward.note(draw.token_ids)
        return self._last

    def _with_places(self, rows: list[Row]) -> list[Row]:
        """What rows follow, by the place that its token has among those of the last step."""
        if not any(row.follows is not None for row in rows):
            return rows
        places = {i: place for place, i in enumerate(self._last.sampled)}
        return [row if row.follows is None else replace(row, follows=places[row.follows]) for row in rows]

    def _forward_pass(self, config: EngineConfig, kernels: Kernels | None, shapes: int | None) -> ForwardPass:
        if kernels is None:
            return PaddedPass(self._model, self._cache)
        tiled = TiledPass(self._model, self._cache, kernels, config.max_sequences, shapes=shapes)
        if config.cuda_graphs and self._device.type != "cpu":
            tiled.capture(self._longest, cuda_capture(self._device), compiled=config.compile)
        return tiled

    def _settle(self, kernels: Kernels | None) -> None:
        """On a CPU, where a step is so short that what surrounds it matters: with how many threads, and how."""

        def seconds(rows: int) -> float:
            return step_seconds(rows, self.limits.block_size, self._logits)

        if self._device.type != "cpu" or seconds(1) > _LONG_S:
            return
        self._forward.threads.learn(seconds)
        if isinstance(self._forward, TiledPass) and isinstance(kernels, CpuKernels):
            self._forward.capture(self._longest, Recorder(kernels.library))

    @property
    def _longest(self) -> int:
        """Blocks of a sequence."""
        return -(-self.limits.max_model_len // self.limits.block_size)

    def _logits(self, row: Row) -> Tensor:
        return self._forward([row])


def _states(row: Row) -> list[SamplingState]:
    """Of each token that the row chooses."""
    return [row.sampling.after(number) for number in range(row.guesses + 1)] if row.sampling else []


def _paging(loaded: LoadedModel, config: EngineConfig, kernels: Kernels | None) -> Paging:
    heads = int(loaded.model.config.get_text_config().num_attention_heads)

    def works(block_size: int) -> bool:
        return kernels is not None and all(
            kernels_work(kernels, block_size, heads, shape, loaded.dtype, loaded.device) for shape in set(loaded.layers)
        )

    return Paging.of(config.block_size, works)


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
