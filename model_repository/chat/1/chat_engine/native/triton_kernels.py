"""Attention over the paged cache where it lies, and the writing of it, as kernels of the Triton language.

Not imported where that language is not installed; it comes with torch's builds for CUDA. On a CPU its interpreter runs
them, for tests: `TRITON_INTERPRET=1`.

Flash Attention 2 (arXiv:2307.08691) over the blocks of PagedAttention (arXiv:2309.06180), in the tiles of `tiles`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chat_engine.native.attention_kernels import LayerAttention
from chat_engine.native.step_inputs import StepInputs

# The matrix units multiply no fewer rows than these.
_FEWEST_ROWS = 16
# Of the keys that a program holds at a time, and of the values; a small GPU has shared memory for two of each.
_TILE_BYTES = 16 << 10
_LOG2_E = 1.4426950408889634


# Query rows of a wide tile, each head of them that shares a KV head counted.
_WIDE_ROWS = 64


class TritonKernels:
    """See `Kernels`."""

    def wide_rows(self, group: int) -> int:
        """See `Kernels.wide_rows`."""
        return max(1, _WIDE_ROWS >> (group - 1).bit_length())

    def attention(self, step: StepInputs) -> LayerAttention:
        """See `Kernels.attention`."""

        def attend(
            q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
        ) -> Tensor:
            _write(k, v, keys, values, step.slots)
            return _compute(q, keys, values, step, scale, window, self.wide_rows(q.shape[1] // k.shape[1]))

        return attend


def _write(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Writes `[rows, kv_heads, dim]` into the cache `[blocks, block_size, kv_heads, dim]`."""
    rows, heads, key_dim = k.shape
    value_dim = v.shape[2]
    _store[rows,](
        k, v, keys, values, slots,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        HEADS=heads, KEY_DIM=key_dim, VALUE_DIM=value_dim,
        KEY_SIZE=triton.next_power_of_2(heads * key_dim), VALUE_SIZE=triton.next_power_of_2(heads * value_dim),
        FINITE=k.dtype == torch.float16,
    )  # fmt: skip


def _compute(
    q: Tensor, keys: Tensor, values: Tensor, step: StepInputs, scale: float, window: int | None, wide_rows: int
) -> Tensor:
    """`[rows, heads, value_dim]` for `q`, `[rows, heads, key_dim]`; rows that no tile has are not written."""
    rows, heads, key_dim = q.shape
    _, block_size, kv_heads, value_dim = values.shape
    out = q.new_empty(rows, heads, value_dim)
    decodes = len(step.parts)
    partial = q.new_empty(step.most_parts * decodes, heads, value_dim, dtype=torch.float32)
    weight = q.new_empty(step.most_parts * decodes, heads, dtype=torch.float32)
    group = triton.next_power_of_2(heads // kv_heads)
    key_size, value_size = (max(16, triton.next_power_of_2(dim)) for dim in (key_dim, value_dim))
    keys_at_once = max(16, min(64, _TILE_BYTES // (max(key_size, value_size) * q.element_size())))
    for tensor, fewest in ((step.narrow, 1), (step.wide, wide_rows)):
        if not len(tensor):
            continue
        tile_rows = max(fewest, _FEWEST_ROWS // group)
        _attend[len(tensor), kv_heads](
            q, keys, values, out, partial, weight, tensor, step.positions, step.blocks,
            q.stride(0), q.stride(1), keys.stride(1), values.stride(1), decodes, scale * _LOG2_E,
            KV_HEADS=kv_heads, HEADS=heads // kv_heads, GROUP=group, ROWS=tile_rows,
            KEY_DIM=key_dim, KEY_SIZE=key_size, VALUE_DIM=value_dim, VALUE_SIZE=value_size,
            BLOCK_SIZE=block_size, KEYS=keys_at_once, WINDOW=window or 0,
            num_warps=4, num_stages=2,
        )  # fmt: skip
    if step.most_parts:
        _merge[decodes, heads](
            out, partial, weight, step.parts, decodes, HEADS=heads,
            VALUE_DIM=value_dim, VALUE_SIZE=triton.next_power_of_2(value_dim), num_warps=1,
        )  # fmt: skip
    return out


@triton.jit
def _store(
    k, v, keys, values, slots, k_row, k_head, v_row, v_head,
    HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    KEY_SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if slot < 0:
        return
    i = tl.arange(0, KEY_SIZE)
    real = i < HEADS * KEY_DIM
    key = tl.load(k + row * k_row + i // KEY_DIM * k_head + i % KEY_DIM, real)
    j = tl.arange(0, VALUE_SIZE)
    held = j < HEADS * VALUE_DIM
    value = tl.load(v + row * v_row + j // VALUE_DIM * v_head + j % VALUE_DIM, held)
    if FINITE:
        # What overflows must not stay in the block: 0 times infinity is NaN, also for the block's next owner.
        key = tl.where(key == key, tl.clamp(key.to(tl.float32), -65504.0, 65504.0), 0.0)
        value = tl.where(value == value, tl.clamp(value.to(tl.float32), -65504.0, 65504.0), 0.0)
    tl.store(keys + slot * HEADS * KEY_DIM + i, key, real)
    tl.store(values + slot * HEADS * VALUE_DIM + j, value, held)


@triton.jit(do_not_specialize=["decodes"])
def _attend(
    q, keys, values, out, partial, weight, tiles, positions, blocks,
    q_row, q_head, key_token, value_token, decodes, scale,
    KV_HEADS: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_SIZE: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 6
    kv_head = tl.program_id(1)
    count = tl.load(tile + 1)
    if count == 0:
        return
    first = tl.load(tile)
    table = blocks + tl.load(tile + 2)
    begin = tl.load(tile + 3)
    end = tl.load(tile + 4)
    part = tl.load(tile + 5)

    # The heads that share this KV head stand beside each other for each row.
    m = tl.arange(0, ROWS * GROUP)
    row = first + m // GROUP
    head = kv_head * HEADS + m % GROUP
    real = (m // GROUP < count) & (m % GROUP < HEADS)
    position = tl.load(positions + row, real, other=0)
    if WINDOW > 0:
        begin = tl.maximum(begin, tl.load(positions + first) - WINDOW + 1)
    d = tl.arange(0, KEY_SIZE)
    e = tl.arange(0, VALUE_SIZE)
    query = tl.load(
        q + row[:, None].to(tl.int64) * q_row + head[:, None] * q_head + d[None, :],
        real[:, None] & (d < KEY_DIM)[None, :],
        other=0.0,
    )
    most = tl.full([ROWS * GROUP], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * GROUP], tl.float32)
    result = tl.zeros([ROWS * GROUP, VALUE_SIZE], tl.float32)
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        held = j < end
        block = tl.load(table + j // BLOCK_SIZE, held, other=0).to(tl.int64)
        token = block * BLOCK_SIZE + j % BLOCK_SIZE
        key = tl.load(
            keys + token[None, :] * key_token + kv_head * KEY_DIM + d[:, None],
            held[None, :] & (d < KEY_DIM)[:, None],
            other=0.0,
        )
        value = tl.load(
            values + token[:, None] * value_token + kv_head * VALUE_DIM + e[None, :],
            held[:, None] & (e < VALUE_DIM)[None, :],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee") * scale  # else float32 would lose digits
        seen = held[None, :] & (j[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (j[None, :] > position[:, None] - WINDOW)
        score = tl.where(seen, score, float("-inf"))
        highest = tl.maximum(most, tl.max(score, 1))
        # A row may see none of these keys, nor any before them.
        base = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp2(score - base[:, None])
        kept = tl.exp2(most - base)
        total = total * kept + tl.sum(p, 1)
        result = result * kept[:, None]
        result += tl.dot(p.to(value.dtype), value, input_precision="ieee")
        most = highest

    divisor = tl.where(total == 0, 1.0, total)
    result = result / divisor[:, None]
    written = real[:, None] & (e < VALUE_DIM)[None, :]
    if part < 0:
        place = row[:, None].to(tl.int64) * (KV_HEADS * HEADS) + head[:, None]
        tl.store(out + place * VALUE_DIM + e[None, :], result, written)
    else:
        slot = (part * decodes + row).to(tl.int64) * (KV_HEADS * HEADS) + head
        tl.store(partial + slot[:, None] * VALUE_DIM + e[None, :], result, written)
        tl.store(weight + slot, tl.where(total == 0, float("-inf"), most + tl.log2(divisor)), real)


@triton.jit(do_not_specialize=["decodes"])
def _merge(
    out, partial, weight, parts, decodes,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_SIZE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    count = tl.load(parts + row)
    if count == 0:
        return
    e = tl.arange(0, VALUE_SIZE)
    most = float("-inf")
    total = 0.0
    result = tl.zeros([VALUE_SIZE], tl.float32)
    for part in range(count):
        slot = (part * decodes + row).to(tl.int64) * HEADS + head
        w = tl.load(weight + slot)
        value = tl.load(partial + slot * VALUE_DIM + e, e < VALUE_DIM, other=0.0)
        highest = tl.maximum(most, w)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        kept = tl.exp2(most - base)
        new = tl.exp2(w - base)
        result = result * kept + value * new
        total = total * kept + new
        most = highest
    tl.store(out + (row.to(tl.int64) * HEADS + head) * VALUE_DIM + e, result / total, e < VALUE_DIM)
