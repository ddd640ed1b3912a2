"""Before anybody is served: that a model computes the same over the paged cache as by itself, and that it is warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.model_loader import LoadedModel, sample_ids
from chat_engine.native.runner import Row, RunnerLimits
from chat_engine.native.sampler import SamplingState
from chat_engine.request import SamplingParams

log = logging.getLogger(__name__)

Forward = Callable[[Row], Tensor]
"""Gives the logits `[1, vocab]` of a row's last token."""

_WARMUP_SECONDS = 20.0
_GREEDY = SamplingState.start(SamplingParams(temperature=0), 0, frozenset(), ())
# How far the logits of the paged path may lie from those of the model's own attention, relative to their norm.
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_16_BIT = 5e-2
_CHECK_TOKENS = 24


@torch.inference_mode()
def prove(loaded: LoadedModel, limits: RunnerLimits, forward: Forward) -> None:
    """Compares the paged path, in two chunks, with the model's own attention over the same tokens.

    Raises ConfigError when the model gives no numbers, as float16 may, and UnsupportedModelError when they differ:
    the model then does something between its tokens that paged attention does not know of.
    """
    ids = sample_ids(min(_CHECK_TOKENS, limits.max_model_len), limits.vocab_size)
    middle, end = max(1, len(ids) * 2 // 3), len(ids)
    chunks = ids[:middle], ids[middle:]
    blocks = _blocks(end, limits.block_size)
    rows = (Row(chunk, length, blocks, _GREEDY) for chunk, length in zip(chunks, (middle, end), strict=True))
    paged = torch.cat([forward(row) for row in rows]).float()
    if not paged.isfinite().all():
        raise ConfigError(f"dtype: the model's logits are not finite in {loaded.dtype}; try another dtype")
    own = loaded.own_logits(ids)[[middle - 1, end - 1]]
    error = float((paged - own).norm() / own.norm())
    if not error < _TOLERANCE.get(loaded.dtype, _TOLERANCE_16_BIT):
        kind = loaded.model.config.model_type
        raise UnsupportedModelError(
            f"{kind}: paged attention gives different logits than the model's own ({error:.0%} off)"
        )


@torch.inference_mode()
def warm_up(sizes: Iterable[int], block_size: int, forward: Forward) -> float:
    """Runs each size of a pass once, so that the first users do not pay for it; for at most 20 s.

    On the real cache: whatever it writes is overwritten before anyone reads it. Returns the seconds of the longest.
    """
    begin = last = time.monotonic()
    longest = 0.0
    for size in sizes:
        forward(Row([0] * size, size, _blocks(size, block_size), _GREEDY))
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if now - begin > _WARMUP_SECONDS:
            log.info("warm-up stopped after %.0f s, before shapes below %d tokens", _WARMUP_SECONDS, size)
            break
    return longest


def _blocks(num_tokens: int, block_size: int) -> list[int]:
    return list(range(-(-num_tokens // block_size)))
