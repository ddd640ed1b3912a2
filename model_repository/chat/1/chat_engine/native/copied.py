"""Paged attention of a step by scaled dot-product attention over copies of the blocks, where no kernels of `tiled` run.

One call per prefill chunk, and few for all decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chat_engine.native.decodes import Beginning, Decodes
from chat_engine.native.paged_cache import PagedCache, Span


class CopiedBatch:
    """See `AttentionBatch`.

    Args:
        cache: where keys and values lie.
        spans: of the step, in attention order.
        beginnings: what its decodes share.
        device: of the cache.
    """

    def __init__(
        self, cache: PagedCache, spans: Sequence[Span], beginnings: Sequence[Beginning], device: torch.device
    ) -> None:
        later = [span.count > 1 for span in spans]
        assert later == sorted(later), "decodes must stand before prefill chunks"
        size = cache.block_size
        slots = [
            span.blocks[position // size] * size + position % size
            for span in spans
            for position in range(span.length - span.count, span.length)
        ]
        self._cache = cache
        self._rows = len(slots)
        self._slots = torch.tensor(slots, dtype=torch.long, device=device)
        self._decodes = Decodes(cache, [span for span in spans if span.count == 1], beginnings, device)
        self._prefills = [(span, torch.tensor(span.blocks, device=device)) for span in spans if span.count > 1]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """See `AttentionBatch.attend`. Padding rows are zero."""
        out = q.new_zeros(*q.shape[:2], v.shape[2])
        q, k, v = (tensor[: self._rows] for tensor in (q, k, v))
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if k.dtype == torch.float16:
            # What overflows here must not stay in the block: 0 times infinity is NaN, also for the block's next owner.
            k, v = k.nan_to_num(), v.nan_to_num()
        keys.flatten(0, 1).index_copy_(0, self._slots, k)
        values.flatten(0, 1).index_copy_(0, self._slots, v)
        self._decodes.attend(out, q, layer, scale, window)
        for span, blocks in self._prefills:
            chunk = slice(span.start, span.start + span.count)
            if span.length == span.count and (window is None or span.length <= window):
                out[chunk] = _causal(q[chunk], k[chunk], v[chunk], scale)
            else:
                out[chunk] = _chunk(q[chunk], self._cache, layer, scale, window, span, blocks)
        return out


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A prompt from its beginning, `[rows, heads, dim]`: its keys are all in this step."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)


def _chunk(
    q: Tensor, cache: PagedCache, layer: int, scale: float, window: int | None, span: Span, blocks: Tensor
) -> Tensor:
    """A later chunk of a prompt, `[rows, heads, dim]`: it looks back into the cache."""
    k, v = (t.flatten(0, 1)[: span.length].transpose(0, 1)[None] for t in cache.gather(layer, blocks))
    position = torch.arange(span.length - span.count, span.length, device=q.device)[:, None]
    behind = position - torch.arange(span.length, device=q.device)
    mask = behind >= 0
    if window is not None:
        mask &= behind < window
    q = q.transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)
