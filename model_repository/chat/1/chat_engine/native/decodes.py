"""Attention of decodes, one query per sequence, by scaled dot-product attention over copies of the blocks.

Sequences of similar length share one padded call. Where several begin with the same blocks (a system prompt, examples,
several answers to one prompt), all their queries attend to these blocks in one call, and each to what follows in
another; the parts are put together by their log-sum-exp (cascade attention, FlashInfer 2024; the sums as in Flash
Attention, arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chat_engine.native.paged_cache import PagedCache, Span
from chat_engine.native.runner import Row

# Decodes share one padded call while the padding stays below this part of it.
_MAX_PADDING = 0.25
# So many tokens of keys and values not read again are worth a second call and putting the parts together.
_WORTH_TOKENS = 256
# A sequence joins those before it unless they would have to give up more than this part of what they share.
_KEPT = 0.5


@dataclass(frozen=True)
class Beginning:
    """Neighbours among the decodes of a step whose sequences begin with the same blocks.

    Attributes:
        first: the place of the first of them.
        count: how many there are.
        blocks: that all of them begin with.
    """

    first: int
    count: int
    blocks: int


def arrange(rows: Sequence[Row], block_size: int | None) -> tuple[list[int], list[Beginning]]:
    """An order of decodes, and what neighbours in it share: those that share first, the others by length.

    Args:
        rows: of one token each.
        block_size: tokens of a block; None where nothing is to be shared.
    """
    if block_size is None:
        return sorted(range(len(rows)), key=lambda i: rows[i].length), []
    by_blocks = sorted(range(len(rows)), key=lambda i: rows[i].blocks)
    order: list[int] = []
    beginnings: list[Beginning] = []
    alone: list[int] = []
    group: list[int] = []
    shared = 0

    def close() -> None:
        if (len(group) - 1) * shared * block_size >= _WORTH_TOKENS:
            beginnings.append(Beginning(len(order), len(group), shared))
            order.extend(sorted(group, key=lambda i: rows[i].length))
        else:
            alone.extend(group)

    for i in by_blocks:
        common = _common(rows[group[-1]].blocks, rows[i].blocks, shared) if group else 0
        if common and (len(group) == 1 or common >= _KEPT * shared):
            group.append(i)
            shared = common
            continue
        close()
        group, shared = [i], len(rows[i].blocks) - 1  # the last block is its own
    close()
    return order + sorted(alone, key=lambda i: rows[i].length), beginnings


def _common(a: list[int], b: list[int], most: int) -> int:
    """How many blocks both begin with, of the first `most` of `a`."""
    most = min(most, len(b) - 1)  # the last block is its own
    if a[:most] == b[:most]:
        return most
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


class Decodes:
    """The decodes of one step, `[rows, heads, dim]` each: planned once, computed in every layer.

    Args:
        cache: where their keys and values are.
        spans: theirs, in the order of `arrange`; their rows are neighbours.
        beginnings: what they share.
        device: of the cache.
    """

    def __init__(
        self, cache: PagedCache, spans: Sequence[Span], beginnings: Sequence[Beginning], device: torch.device
    ) -> None:
        self._cache = cache
        self._spans = spans
        self._device = device
        self._longest = max((span.length for span in spans), default=0)
        self._shared = [_Shared.of(cache, spans, beginning, device) for beginning in beginnings]
        alone = spans[sum(beginning.count for beginning in beginnings) :]
        self._alone = _groups(cache, alone, 0, device)
        self._whole: list[_Group] | None = None if beginnings else self._alone

    def attend(self, out: Tensor, q: Tensor, layer: int, scale: float, window: int | None) -> None:
        """Writes the rows of the decodes into `out`; `q` has all rows of the step."""
        if window is not None and window < self._longest:
            # Each query looks back on another part of what is shared.
            if self._whole is None:
                self._whole = _groups(self._cache, self._spans, 0, self._device)
            for group in self._whole:
                out[group.rows] = group.attend(self._cache, q[group.rows], layer, scale, window)
            return
        for shared in self._shared:
            shared.attend(self._cache, out, q, layer, scale)
        for group in self._alone:
            out[group.rows] = group.attend(self._cache, q[group.rows], layer, scale, None)


@dataclass(frozen=True)
class _Group:
    """Decodes of similar length that share one call: their rows, their padded blocks, and which keys are real."""

    rows: slice
    blocks: Tensor  # [n * padded blocks]
    mask: Tensor  # [n, 1, 1, padded blocks * block_size]
    behind: Tensor  # [n, padded blocks * block_size], how far each key lies behind the query
    bias: Tensor  # the mask as numbers to add, of the type of the cache

    @classmethod
    def of(cls, cache: PagedCache, spans: Sequence[Span], skipped: int, device: torch.device) -> _Group:
        """Without the first `skipped` blocks of each."""
        tables = [span.blocks[skipped:] for span in spans]
        width = max(map(len, tables))
        last = torch.tensor([span.length - 1 - skipped * cache.block_size for span in spans], device=device)
        behind = last[:, None] - torch.arange(width * cache.block_size, device=device)
        mask = (behind >= 0)[:, None, None, :]
        return cls(
            rows=slice(spans[0].start, spans[-1].start + 1),
            blocks=torch.tensor([table + [0] * (width - len(table)) for table in tables], device=device).flatten(),
            mask=mask,
            behind=behind,
            bias=torch.zeros(mask.shape, dtype=cache.keys[0].dtype, device=device).masked_fill_(~mask, -torch.inf),
        )

    def attend(self, cache: PagedCache, q: Tensor, layer: int, scale: float, window: int | None) -> Tensor:
        """`[n, heads, dim]`. The heads that share a KV head take the place of query positions."""
        k, v = self._keys_and_values(cache, len(q), layer)
        mask = self.mask if window is None else self.mask & (self.behind < window)[:, None, None, :]
        out = F.scaled_dot_product_attention(_by_kv_head(q, k.shape[1]), k, v, attn_mask=mask, scale=scale)
        return out.reshape(*q.shape[:2], -1)

    def attend_in_part(self, cache: PagedCache, q: Tensor, layer: int, scale: float) -> tuple[Tensor, Tensor]:
        """The same as `[n, kv_heads, group, dim]`, and the log-sum-exp of its scores `[n, kv_heads, group]`."""
        k, v = self._keys_and_values(cache, len(q), layer)
        return _flash(_by_kv_head(q, k.shape[1]), k, v, scale, self.bias)

    def _keys_and_values(self, cache: PagedCache, count: int, layer: int) -> tuple[Tensor, ...]:
        return tuple(t.view(count, -1, *t.shape[2:]).transpose(1, 2) for t in cache.gather(layer, self.blocks))


@dataclass(frozen=True)
class _Shared:
    """Decodes that begin with the same blocks, and what follows in each."""

    rows: slice
    blocks: Tensor  # [shared blocks]
    rests: list[_Group]

    @classmethod
    def of(cls, cache: PagedCache, spans: Sequence[Span], beginning: Beginning, device: torch.device) -> _Shared:
        members = spans[beginning.first : beginning.first + beginning.count]
        return cls(
            rows=slice(members[0].start, members[-1].start + 1),
            blocks=torch.tensor(members[0].blocks[: beginning.blocks], device=device),
            rests=_groups(cache, members, beginning.blocks, device),
        )

    def attend(self, cache: PagedCache, out: Tensor, q: Tensor, layer: int, scale: float) -> None:
        """Writes its rows into `out`."""
        k, v = (t.flatten(0, 1).transpose(0, 1)[None] for t in cache.gather(layer, self.blocks))
        n, kv_heads = self.rows.stop - self.rows.start, k.shape[1]
        together = _by_kv_head(q[self.rows], kv_heads).transpose(0, 1).flatten(1, 2)[None]
        first, first_lse = _flash(together, k, v, scale)
        first = first[0].view(kv_heads, n, -1, first.shape[-1]).transpose(0, 1)
        first_lse = first_lse[0].view(kv_heads, n, -1).transpose(0, 1)
        for rest in self.rests:
            part = slice(rest.rows.start - self.rows.start, rest.rows.stop - self.rows.start)
            second, second_lse = rest.attend_in_part(cache, q[rest.rows], layer, scale)
            weight = torch.sigmoid(first_lse[part] - second_lse)[..., None]  # exp(a) / (exp(a) + exp(b))
            out[rest.rows] = torch.lerp(second.float(), first[part].float(), weight).flatten(1, 2).to(out.dtype)


def _by_kv_head(q: Tensor, kv_heads: int) -> Tensor:
    """`[n, heads, dim]` as `[n, kv_heads, group, dim]`."""
    return q.view(len(q), kv_heads, -1, q.shape[-1])


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `F.scaled_dot_product_attention` calls on a CPU, which does not hand on the log-sum-exp."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    out, lse = attend(q, k, v, attn_mask=mask, scale=scale)
    return out, lse


def _groups(cache: PagedCache, spans: Sequence[Span], skipped: int, device: torch.device) -> list[_Group]:
    return [_Group.of(cache, group, skipped, device) for group in _similar(spans, skipped)]


def _similar(spans: Sequence[Span], skipped: int) -> list[list[Span]]:
    """Splits spans into groups of neighbours that waste little when padded to their longest."""
    groups: list[list[Span]] = []
    real = longest = 0
    for span in spans:
        blocks = len(span.blocks) - skipped
        real, longest = real + blocks, max(longest, blocks)
        if groups and real >= (len(groups[-1]) + 1) * longest * (1 - _MAX_PADDING):
            groups[-1].append(span)
        else:
            groups.append([span])
            real = longest = blocks
    return groups
