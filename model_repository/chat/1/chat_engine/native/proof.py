"""Before anybody is served: that a model computes the same over the paged cache as by itself, and that it is warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.model_loader import LoadedModel, sample_ids
from chat_engine.native.runner import Row
from chat_engine.native.sampler import SamplingState
from chat_engine.request import SamplingParams

log = logging.getLogger(__name__)

Forward = Callable[[Row], Tensor]
"""Gives the logits `[1, vocab]` of a row's last token."""

_WARMUP_SECONDS = 20.0
_GREEDY = SamplingState.start(SamplingParams(temperature=0), 0, frozenset(), ())
# How far the logits of the paged path may lie from those of the model's own attention, relative to their norm; and in
# 16 bits, where each of many layers rounds, so many times as far as two ways of its own to attend lie apart.
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 5e-2
_TIMES_ROUNDING = 3
_TOLERANCE_QUANTISED = 0.5
_CHECK_TOKENS = 24


class Proof:
    """That the paged path, in two chunks and a decode, computes what the model's own attention does over these tokens.

    Made of the model as transformers loads it, before any of its layers is replaced.
    """

    def __init__(self, loaded: LoadedModel, max_model_len: int | None) -> None:
        self._kind, self._dtype = loaded.model.config.model_type, loaded.dtype
        self._ids = sample_ids(min(_CHECK_TOKENS, max_model_len or loaded.context.usual), loaded.vocab_size)
        count = len(self._ids)
        self._ends = sorted({max(1, count * 2 // 3), max(1, count - 1), count})
        places = [end - 1 for end in self._ends]
        self._own = loaded.own_logits(self._ids, "eager")[places]
        self._tolerance = _TOLERANCE.get(self._dtype) or self._tolerance_16_bit(loaded, places)

    def check(self, forward: Forward, block_size: int) -> None:
        """Raises ConfigError when the model gives no numbers, as float16 may, UnsupportedModelError when they differ.

        The model then does something between its tokens that paged attention does not know of.
        """
        error = self._distance(self._paged(forward, block_size))
        if not error < self._tolerance:
            raise UnsupportedModelError(
                f"{self._kind}: paged attention gives different logits than the model's own ({error:.0%} off)"
            )

    def check_quantised(self, forward: Forward, block_size: int) -> None:
        """Logs how far rounded weights are off. Raises ConfigError where they make another model of it."""
        error = self._distance(self._paged(forward, block_size))
        log.info("quantised weights: logits are %.1f%% off those of the checkpoint", 100 * error)
        if not error < _TOLERANCE_QUANTISED:
            raise ConfigError(
                f"quantization: the logits of {self._kind} are {error:.0%} off with rounded weights; leave it out"
            )

    @torch.inference_mode()
    def _paged(self, forward: Forward, block_size: int) -> Tensor:
        blocks = _blocks(len(self._ids), block_size)
        begins = [0, *self._ends]
        chunks = [(self._ids[begin:end], end) for begin, end in zip(begins, self._ends, strict=False)]
        paged = torch.cat([forward(Row(ids, end, blocks, _GREEDY)).float() for ids, end in chunks])
        if not paged.isfinite().all():
            raise ConfigError(f"dtype: the model's logits are not finite in {self._dtype}; try another dtype")
        return paged

    def _tolerance_16_bit(self, loaded: LoadedModel, places: list[int]) -> float:
        try:
            other = loaded.own_logits(self._ids, "sdpa")[places]
        except ValueError:  # not every model has it
            return _TOLERANCE_16_BIT
        return max(_TOLERANCE_16_BIT, _TIMES_ROUNDING * self._distance(other))

    def _distance(self, logits: Tensor) -> float:
        """From the model's own, relative to their norm."""
        return float((logits - self._own).norm() / self._own.norm())


@torch.inference_mode()
def warm_up(sizes: Iterable[int], block_size: int, forward: Forward) -> float:
    """Runs each size of a pass once, so that the first users do not pay for it; for at most 20 s.

    On the real cache: whatever it writes is overwritten before anyone reads it. Returns the seconds of the longest.
    """
    begin, longest = time.monotonic(), 0.0
    for size in sizes:
        longest = max(longest, step_seconds(size, block_size, forward))
        if time.monotonic() - begin > _WARMUP_SECONDS:
            log.info("warm-up stopped after %.0f s, before shapes below %d tokens", _WARMUP_SECONDS, size)
            break
    return longest


@torch.inference_mode()
def step_seconds(rows: int, block_size: int, forward: Forward) -> float:
    """What a step of so many rows takes, on the real cache, before anyone is served."""
    begin = time.perf_counter()
    forward(Row([0] * rows, rows, _blocks(rows, block_size), _GREEDY))
    return time.perf_counter() - begin


def _blocks(num_tokens: int, block_size: int) -> list[int]:
    return list(range(-(-num_tokens // block_size)))
