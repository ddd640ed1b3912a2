from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from chat_engine.errors import UnsupportedModelError
from chat_engine.native import decodes
from chat_engine.native.attention import LayerProbe, paged_attention
from chat_engine.native.attention_kernels import Kernels
from chat_engine.native.copied import CopiedBatch
from chat_engine.native.paged_cache import LayerShape, PagedCache, Span
from chat_engine.native.passes import attention_order
from chat_engine.native.runner import Row
from chat_engine.native.tiled import TiledBatch
from tests.chat_engine.builders import examples

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One step: for each sequence how many tokens it has and how many of them are new.

    The sequence at place `i` begins with the first `shared[i][1]` blocks of that at `shared[i][0]`.
    """

    sequences: list[tuple[int, int]]  # (length, new)
    shared: dict[int, tuple[int, int]] = field(default_factory=dict)
    block_size: int = 4
    kv_heads: int = 2
    group: int = 2
    key_dim: int = 8
    value_dim: int = 8
    window: int | None = None
    padding: int = 0
    seed: int = 0


class Step:
    """A case laid out in a paged cache with the blocks in random order, and its answer by the textbook."""

    def __init__(
        self,
        case: Case,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
        tiles: int = 1,
    ) -> None:
        """By kernels, with decodes in about so many tiles, or over copies."""
        self.case = case
        random = torch.Generator().manual_seed(case.seed)
        size, kv_heads = case.block_size, case.kv_heads
        needed = [-(-length // size) for length, _ in case.sequences]
        numbers = torch.randperm(sum(needed) + 3, generator=random).tolist()
        shape = LayerShape(kv_heads, case.key_dim, case.value_dim)
        self.cache = PagedCache([shape], len(numbers), size, dtype, device, kernels is not None)
        stale = torch.randn(self.cache.keys[0].shape, generator=random) * 50  # what others left behind
        self.cache.keys[0].copy_(stale)
        self.cache.values[0].copy_(torch.randn(self.cache.values[0].shape, generator=random) * 50)
        rows, contents = [], []
        for i, ((length, new), count) in enumerate(zip(case.sequences, needed, strict=True)):
            blocks = [numbers.pop() for _ in range(count)]
            k = torch.randn(length, kv_heads, case.key_dim, generator=random).to(dtype)
            v = torch.randn(length, kv_heads, case.value_dim, generator=random).to(dtype)
            if i in case.shared:
                other, begun = case.shared[i]
                blocks[:begun] = rows[other].blocks[:begun]
                k[: begun * size], v[: begun * size] = (t[: begun * size] for t in contents[other])
            for position in range(length - new):
                block, offset = blocks[position // size], position % size
                self.cache.keys[0][block, offset] = k[position].to(device)
                self.cache.values[0][block, offset] = v[position].to(device)
            rows.append(Row([0] * new, length, blocks, None))
            contents.append((k, v))
        order, self.beginnings = attention_order(rows, self.cache)
        spans, queries, keys, values, expected = [], [], [], [], []
        for i in order:
            length, new = case.sequences[i]
            k, v = contents[i]
            q = torch.randn(new, kv_heads * case.group, case.key_dim, generator=random).to(dtype)
            spans.append(Span(sum(map(len, queries)), new, length, rows[i].blocks))
            queries.append(q)
            keys.append(k[length - new :])
            values.append(v[length - new :])
            expected.append(textbook(q, k, v, case.window))
        self.rows = sum(map(len, queries))
        self.spans = spans
        self.batch = (
            CopiedBatch(self.cache, spans, self.beginnings, device)
            if kernels is None
            else TiledBatch.of(kernels, self.cache, spans, case.group, self.beginnings, tiles)
        )
        pad = torch.randn(case.padding, case.kv_heads * case.group, case.key_dim, generator=random).to(dtype)
        pad_kv = torch.randn(case.padding, case.kv_heads, max(case.key_dim, case.value_dim), generator=random).to(dtype)
        self.query = as_model([*queries, pad], device)
        self.key = as_model([*keys, pad_kv[..., : case.key_dim]], device)
        self.value = as_model([*values, pad_kv[..., : case.value_dim]], device)
        self.expected = torch.cat(expected)

    def run(self) -> Tensor:
        """`[rows, heads, value_dim]`, float32, with what the padding got behind."""
        out, _ = paged_attention(
            layer(), self.query, self.key, self.value, None, sliding_window=self.case.window, paged=self.batch
        )
        return out[0].float().cpu()


def as_model(parts: list[Tensor], device: torch.device) -> Tensor:
    return torch.cat(parts).transpose(0, 1)[None].to(device)


def layer(index: int = 0) -> nn.Module:
    module = nn.Module()
    module.layer_idx = index
    return module


def textbook(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Causal attention of the last `len(q)` tokens, `[new, heads, value_dim]`, one query at a time in float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    out = []
    for i, query in enumerate(q.double()):
        last = len(k) - len(q) + i
        first = 0 if window is None else max(0, last - window + 1)
        scores = torch.einsum("hd,khd->hk", query, k[first : last + 1]) * q.shape[-1] ** -0.5
        out.append(torch.einsum("hk,khd->hd", scores.softmax(-1), v[first : last + 1]))
    return torch.stack(out).float()


SEQUENCES = st.lists(
    st.integers(1, 40).flatmap(
        lambda length: st.tuples(st.just(length), st.sampled_from([1, 1, min(3, length), length]))
    ),
    min_size=1,
    max_size=7,
)
CASES = st.builds(
    Case,
    sequences=SEQUENCES,
    block_size=st.sampled_from([1, 3, 4, 16]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    key_dim=st.sampled_from([4, 8]),
    value_dim=st.sampled_from([4, 8]),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    padding=st.sampled_from([0, 3]),
    seed=st.integers(0, 50),
)


@pytest.fixture(autouse=True, scope="module")
def _sharing_is_always_worth_it() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decodes, "_WORTH_TOKENS", 1)
        yield


def related(case: Case, relations: list[tuple[int, int]]) -> Case:
    """The same, with sequences that begin like earlier ones, as far as both have their first tokens in the cache."""
    old = [(length - new) // case.block_size for length, new in case.sequences]
    shared = {}
    for i, (other, blocks) in zip(range(1, len(old)), relations, strict=False):
        shared[i] = other % i, min(old[i], old[other % i], blocks)
    return replace(case, shared=shared)


RELATIONS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=6)


@examples(250)
@given(st.builds(related, CASES, RELATIONS))
def test_any_step_is_what_the_textbook_says(case: Case) -> None:
    step = Step(case)
    out = step.run()
    assert torch.allclose(out[: step.rows], step.expected, atol=1e-4)
    assert not out[step.rows :].any(), "padding is zero"


@pytest.mark.parametrize(
    "sequences",
    [
        [(1, 1)],
        [(9, 9)],
        [(9, 4)],
        [(9, 1)],
        [(4, 1), (5, 1), (8, 1), (100, 1)],
        [(1, 1)] * 9,
        [(20, 20), (3, 1), (17, 5), (1, 1)],
    ],
    ids=["one token", "whole prompt", "later chunk", "decode", "decodes of all lengths", "equal", "mixed"],
)
@pytest.mark.parametrize("window", [None, 3])
def test_kinds_of_steps(sequences: list[tuple[int, int]], window: int | None) -> None:
    step = Step(Case(sequences, window=window))
    assert torch.allclose(step.run(), step.expected, atol=1e-4)


FAMILY = {1: (0, 6), 2: (0, 6), 3: (2, 8)}


@pytest.mark.parametrize("window", [None, 3, 30, 100])
def test_decodes_that_begin_with_the_same_blocks_attend_to_them_together(window: int | None) -> None:
    step = Step(Case([(40, 1), (25, 1), (34, 1), (37, 1), (30, 1), (9, 4)], shared=FAMILY, window=window))
    assert [(b.count, b.blocks) for b in step.beginnings] == [(4, 6)]
    assert torch.allclose(step.run(), step.expected, atol=1e-4)


def test_a_sequence_that_shares_little_does_not_spoil_what_others_share() -> None:
    step = Step(Case([(40, 1), (41, 1), (42, 1)], shared={1: (0, 9), 2: (0, 1)}))
    assert [(b.count, b.blocks) for b in step.beginnings] == [(2, 9)]
    assert torch.allclose(step.run(), step.expected, atol=1e-4)


@pytest.mark.parametrize(("blocks", "worth"), [(3, False), (4, True)])
def test_what_is_not_worth_a_second_call_is_read_twice(
    blocks: int, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decodes, "_WORTH_TOKENS", 16)
    assert bool(Step(Case([(40, 1), (41, 1)], shared={1: (0, blocks)})).beginnings) is worth


def test_layers_whose_keys_and_values_differ_in_size_do_not_share() -> None:
    step = Step(Case([(40, 1), (41, 1)], shared={1: (0, 9)}, value_dim=4))
    assert not step.beginnings
    assert torch.allclose(step.run(), step.expected, atol=1e-4)


def test_numbers_beyond_float16_do_not_reach_the_next_owner_of_a_block() -> None:
    step = Step(Case([(6, 1), (9, 1)]), dtype=torch.float16)
    step.key[..., 0] = torch.inf
    step.value[..., 0] = torch.nan
    step.run()
    assert step.cache.keys[0].isfinite().all()
    assert step.cache.values[0].isfinite().all()


def test_sequences_out_of_order_are_noticed() -> None:
    step = Step(Case([(6, 1), (9, 3)]))
    with pytest.raises(AssertionError, match="decodes must stand before"):
        CopiedBatch(step.cache, step.spans[::-1], (), CPU)


def test_a_step_writes_its_keys_and_values_and_nothing_else() -> None:
    step = Step(Case([(6, 2), (5, 5)], padding=2))
    before = step.cache.keys[0].flatten(0, 1).clone()
    step.run()
    after = step.cache.keys[0].flatten(0, 1)
    written = [s.blocks[at // 4] * 4 + at % 4 for s in step.spans for at in range(s.length - s.count, s.length)]
    assert torch.equal(after[written], step.key[0, :, : step.rows].transpose(0, 1))
    rest = torch.ones(len(after), dtype=torch.bool)
    rest[written] = False
    assert torch.equal(after[rest], before[rest])


def test_the_scale_of_the_model_is_used() -> None:
    step = Step(Case([(6, 2)]))
    scaled, _ = paged_attention(layer(), step.query, step.key, step.value, None, scaling=8**-0.5, paged=step.batch)
    flat, _ = paged_attention(layer(), step.query, step.key, step.value, None, scaling=0.0, paged=step.batch)
    assert torch.allclose(scaled[0], step.expected, atol=1e-4)
    assert not torch.allclose(flat[0], step.expected, atol=1e-2)


def test_each_layer_has_its_own_cache() -> None:
    step = Step(Case([(6, 2)]))
    shape = LayerShape(2, 8, 8)
    cache = PagedCache([shape, shape], 8, 4, torch.float32, CPU)
    batch = CopiedBatch(cache, step.spans, (), CPU)
    paged_attention(layer(1), step.query, step.key, step.value, None, paged=batch)
    assert not cache.keys[0].any()
    assert cache.keys[1].any()


def test_the_size_of_a_token_counts_all_layers() -> None:
    assert PagedCache.bytes_per_token([LayerShape(2, 8, 8), LayerShape(4, 16, 8)], torch.bfloat16) == (32 + 96) * 2


# What is refused while loading.


def probe(**options: object) -> LayerProbe:
    noted = LayerProbe()
    query, key = torch.zeros(1, 4, 2, 8), torch.zeros(1, 2, 2, 8)
    paged_attention(layer(), query, key, torch.zeros(1, 2, 2, 6), paged=noted, **{"attention_mask": None, **options})
    return noted


def test_a_trial_notes_the_shapes() -> None:
    assert probe(sliding_window=4, scaling=0.5, dropout=0.0, softcap=None).layers == {0: LayerShape(2, 8, 6)}


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices"])
def test_what_changes_the_attention_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=name):
        probe(**{name: torch.ones(1)})


def test_a_mask_of_the_models_own_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="attention_mask"):
        probe(attention_mask=torch.ones(1, 1, 2, 2))


def test_attention_that_looks_ahead_is_refused() -> None:
    module = layer()
    module.is_causal = False
    q = torch.zeros(1, 2, 2, 8)
    with pytest.raises(UnsupportedModelError, match="not causal"):
        paged_attention(module, q, q, q, None, paged=LayerProbe())


def test_a_layer_that_attends_twice_is_refused() -> None:
    noted, q = LayerProbe(), torch.zeros(1, 2, 2, 8)
    paged_attention(layer(), q, q, q, None, paged=noted)
    with pytest.raises(UnsupportedModelError, match="twice"):
        paged_attention(layer(), q, q, q, None, paged=noted)


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_attention_over_copies_on_cuda_is_what_the_textbook_says(window: int | None) -> None:
    case = Case([(20, 20), (3, 1), (17, 5), (1, 1), (33, 1)], window=window, padding=2)
    step = Step(case, torch.device("cuda"))
    assert torch.allclose(step.run()[: step.rows], step.expected, atol=1e-3)
