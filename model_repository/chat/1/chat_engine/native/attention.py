"""Paged attention, registered with transformers' attention interface.

A step's tokens of all sequences stand one after the other in one row. Their keys and values are written to the paged
cache first, then each sequence attends to its own blocks. On CUDA one call of torch's paged `varlen_attn` does both
prefill and decode; elsewhere, and where the installed torch cannot, scaled dot-product attention does it: one call per
prefill chunk, and one per group of decodes of similar length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from chat_engine.errors import UnsupportedModelError

varlen_attn: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None

IMPLEMENTATION = "triton_chat_paged"

# Arguments that some models' attention needs and that are not done here; a model that passes one is refused at load.
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "attention_mask")
# Decodes share one padded call while the padding stays below this part of it.
_MAX_PADDING = 0.25


@dataclass(frozen=True)
class LayerShape:
    """Heads and their sizes of one attention layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Span:
    """Where one sequence's tokens of this step stand.

    Attributes:
        start: its first row among the step's tokens.
        count: its rows.
        length: its tokens in the cache once these are written.
        blocks: its block numbers, enough for `length`.
    """

    start: int
    count: int
    length: int
    blocks: list[int]


class PagedCache:
    """Keys and values of all layers: per layer two tensors `[blocks, block_size, kv_heads, dim]`."""

    def __init__(
        self,
        layers: list[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        use_varlen: bool = False,
    ) -> None:
        def tensor(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.block_size = block_size
        self.use_varlen = use_varlen
        self.keys = [tensor(layer.kv_heads, layer.key_dim) for layer in layers]
        self.values = [tensor(layer.kv_heads, layer.value_dim) for layer in layers]
        self._gathered = [torch.empty(0, dtype=dtype, device=device) for _ in range(2)]

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values in `blocks` of one layer, `[blocks, block_size, heads, dim]`.

        Valid until the next call: the memory is used again, because fresh pages cost more than the copy itself.
        """
        copies = []
        for number, source in enumerate((self.keys[layer], self.values[layer])):
            needed = len(blocks) * source[0].numel()
            if self._gathered[number].numel() < needed:
                self._gathered[number] = source.new_empty(needed)
            out = self._gathered[number][:needed].view(len(blocks), *source.shape[1:])
            copies.append(torch.index_select(source, 0, blocks, out=out))
        return copies[0], copies[1]

    @staticmethod
    def bytes_per_token(layers: list[LayerShape], dtype: torch.dtype) -> int:
        """Bytes that one token takes in all layers."""
        return sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers) * dtype.itemsize


@dataclass(frozen=True)
class _DecodeGroup:
    """Decodes of similar length that share one call: their rows, their padded blocks, and which keys are real."""

    rows: slice
    blocks: Tensor  # [n * padded blocks]
    mask: Tensor  # [n, 1, 1, padded blocks * block_size]
    positions: Tensor  # [n, padded blocks * block_size], how far each key lies behind the query


@dataclass
class AttentionBatch:
    """One step, as the attention layers see it. Built once, used by every layer.

    The spans stand in the order of `attention_order`, so that decodes of similar length are neighbours.
    """

    cache: PagedCache
    spans: list[Span]
    num_rows: int
    device: torch.device
    slots: Tensor = field(init=False)  # [rows], where in the flattened cache each row's KV goes
    decode_groups: list[_DecodeGroup] = field(init=False)
    prefills: list[tuple[Span, Tensor]] = field(init=False)
    varlen: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        order = [attention_order(span.count, span.length) for span in self.spans]
        assert order == sorted(order), "sequences must stand in attention order"
        size = self.cache.block_size
        slots = [
            span.blocks[position // size] * size + position % size
            for span in self.spans
            for position in range(span.length - span.count, span.length)
        ]
        self.slots = torch.tensor(slots, dtype=torch.long, device=self.device)
        if self.cache.use_varlen:
            self.varlen = self._varlen_arguments()
            return
        decodes = [span for span in self.spans if span.count == 1]
        self.decode_groups = [self._decode_group(group) for group in _similar(decodes)]
        self.prefills = [(span, torch.tensor(span.blocks, device=self.device)) for span in self.spans if span.count > 1]

    def _decode_group(self, spans: list[Span]) -> _DecodeGroup:
        width = max(len(span.blocks) for span in spans)
        padded = [span.blocks + [0] * (width - len(span.blocks)) for span in spans]
        last = torch.tensor([span.length - 1 for span in spans], device=self.device)
        behind = last[:, None] - torch.arange(width * self.cache.block_size, device=self.device)
        return _DecodeGroup(
            rows=slice(spans[0].start, spans[-1].start + 1),
            blocks=torch.tensor(padded, device=self.device).flatten(),
            mask=(behind >= 0)[:, None, None, :],
            positions=behind,
        )

    def _varlen_arguments(self) -> dict[str, Any]:
        width = max(len(span.blocks) for span in self.spans)
        tables = [span.blocks + [0] * (width - len(span.blocks)) for span in self.spans]
        starts = [span.start for span in self.spans] + [self.spans[-1].start + self.spans[-1].count]
        lengths = [span.length for span in self.spans]
        int32 = partial(torch.tensor, dtype=torch.int32, device=self.device)
        return {
            "cu_seq_q": int32(starts),
            "cu_seq_k": None,
            "max_q": max(span.count for span in self.spans),
            "max_k": max(lengths),
            "seqused_k": int32(lengths),
            "block_table": int32(tables),
        }


def attention_order(count: int, length: int) -> tuple[bool, int]:
    """Sort key of a step's sequences, by their new tokens and all their tokens: decodes first, shortest first."""
    return count > 1, length


class LayerProbe:
    """Takes the place of an `AttentionBatch` in one trial forward pass and notes what each layer asks for."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.widest_window: int | None = None

    def note(self, index: int, key: Tensor, value: Tensor, window: int | None, options: dict[str, Any]) -> None:
        """Raises UnsupportedModelError when the layer needs what paged attention here does not do."""
        for name in _UNSUPPORTED:
            if options.get(name) is not None:
                raise UnsupportedModelError(f"the model's attention uses {name!r}, which is not supported")
        if index in self.layers:
            raise UnsupportedModelError(f"the model's layer {index} attends twice, which is not supported")
        self.layers[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        if window is not None:
            self.widest_window = max(window, self.widest_window or 0)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged: AttentionBatch | LayerProbe | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature of transformers' `AttentionInterface`.

    Args:
        query: `[1, heads, rows, key_dim]`; `key` and `value` alike with the KV heads. Rows beyond the batch are
            padding.
        sliding_window: tokens, the query's own among them, that a query may look back on.

    Returns:
        `[1, rows, heads, value_dim]`; padding rows are zero.
    """
    assert paged is not None, "the model does not pass its keyword arguments on to attention"
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
    if isinstance(paged, LayerProbe):
        if not getattr(module, "is_causal", True):
            raise UnsupportedModelError("the model's attention is not causal, which is not supported")
        paged.note(layer, key, value, sliding_window, {**options, "attention_mask": attention_mask})
        return out[None], None
    rows = paged.num_rows
    q, k, v = (tensor[0, :, :rows].transpose(0, 1) for tensor in (query, key, value))
    keys, values = paged.cache.keys[layer], paged.cache.values[layer]
    if k.dtype == torch.float16:
        # What overflows here must not stay in the block: 0 times infinity is NaN, also for the block's next owner.
        k, v = k.nan_to_num(), v.nan_to_num()
    keys.flatten(0, 1).index_copy_(0, paged.slots, k)
    values.flatten(0, 1).index_copy_(0, paged.slots, v)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if paged.cache.use_varlen:
        out[:rows] = _varlen(q, keys, values, scale, sliding_window, paged.varlen)
        return out[None], None
    for group in paged.decode_groups:
        out[group.rows] = _decode(q[group.rows], paged.cache, layer, scale, sliding_window, group)
    for span, blocks in paged.prefills:
        chunk = slice(span.start, span.start + span.count)
        if span.length == span.count and (sliding_window is None or span.length <= sliding_window):
            out[chunk] = _causal(q[chunk], k[chunk], v[chunk], scale)
        else:
            out[chunk] = _chunk(q[chunk], paged.cache, layer, scale, sliding_window, span, blocks)
    return out[None], None


def varlen_works(block_size: int, heads: int, shape: LayerShape, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether paged `varlen_attn` runs here with this block size, and agrees with plain attention.

    Tried rather than derived: it depends on the GPU, on the flash-attention build inside torch and on its version.
    """
    if varlen_attn is None or device.type != "cuda" or dtype == torch.float32 or shape.key_dim != shape.value_dim:
        return False
    results = []
    generator = torch.Generator(device="cpu").manual_seed(0)
    length = 2 * block_size + 3
    spans = [Span(0, 1, length, [3, 1, 2]), Span(1, 5, 5, [4])]
    rows = [torch.randn(n, d, generator=generator).to(device, dtype) for n, d in ((6, heads * shape.key_dim),)]
    pool = torch.randn(5, block_size, shape.kv_heads, shape.key_dim, generator=generator).to(device, dtype)
    new = torch.randn(6, shape.kv_heads, shape.key_dim, generator=generator).to(device, dtype)
    for use_varlen in (False, True):
        cache = PagedCache([shape], 5, block_size, dtype, device, use_varlen)
        cache.keys[0].copy_(pool)
        cache.values[0].copy_(pool.flip(0))
        module = nn.Module()
        module.layer_idx = 0  # type: ignore[assignment]
        query = rows[0].view(6, heads, -1).transpose(0, 1)[None]
        kv = new.transpose(0, 1)[None]
        try:
            out, _ = paged_attention(module, query, kv, kv, None, paged=AttentionBatch(cache, spans, 6, device))
            results.append(out.float().cpu())
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return False
    return bool(torch.allclose(results[0], results[1], atol=3e-2, rtol=3e-2))


def _varlen(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, arguments: dict[str, Any]
) -> Tensor:
    assert varlen_attn is not None
    # One split per sequence: its result does not depend on what else is in the batch.
    result = varlen_attn(
        q.contiguous(),
        keys,
        values,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != keys.shape[2],
        num_splits=1,
        **arguments,
    )
    assert isinstance(result, Tensor)
    return result


def _decode(q: Tensor, cache: PagedCache, layer: int, scale: float, window: int | None, group: _DecodeGroup) -> Tensor:
    """One query per sequence, `[n, heads, dim]`. The heads that share a KV head take the place of query positions."""
    n, heads, dim = q.shape
    k, v = (t.view(n, -1, *t.shape[2:]).transpose(1, 2) for t in cache.gather(layer, group.blocks))
    kv_heads = k.shape[1]
    mask = group.mask
    if window is not None:
        mask = mask & (group.positions < window)[:, None, None, :]
    out = F.scaled_dot_product_attention(q.view(n, kv_heads, heads // kv_heads, dim), k, v, attn_mask=mask, scale=scale)
    return out.reshape(n, heads, -1)


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


def _similar(spans: list[Span]) -> list[list[Span]]:
    """Splits spans, sorted by length, into groups that waste little when padded to their longest."""
    groups: list[list[Span]] = []
    real = 0
    for span in spans:
        real += len(span.blocks)
        if groups and real >= (len(groups[-1]) + 1) * len(span.blocks) * (1 - _MAX_PADDING):
            groups[-1].append(span)
        else:
            groups.append([span])
            real = len(span.blocks)
    return groups


AttentionInterface.register(IMPLEMENTATION, paged_attention)
# The masks are made here, per sequence; transformers' own would be one dense matrix over the whole row.
AttentionMaskInterface.register(IMPLEMENTATION, lambda *_, **__: None)
