from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chat_engine.native import decodes, tiles
from chat_engine.native.paged_cache import Span


def spans_of(lengths: list[int], chunk: int) -> list[Span]:
    made = [Span(row, 1, length, list(range(-(-length // 16)))) for row, length in enumerate(lengths)]
    return [*made, Span(len(lengths), chunk, chunk + 5, list(range(-(-(chunk + 5) // 16))))] if chunk else made


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    st.sampled_from([0, 2, 100]),
    st.integers(1, 200),
    st.integers(0, 20),
)
def test_tiles_cover_every_key_of_every_row_once_and_fit(
    lengths: list[int], chunk: int, wanted: int, shared: int
) -> None:
    shared = min(shared, (min(lengths) - 1) // 16)
    beginnings = [decodes.Beginning(0, len(lengths), shared)] if shared else []
    shape = tiles.Shape(wanted, 16, len(lengths))
    cut = tiles.cut(spans_of(lengths, chunk), beginnings, 16, shape)
    keys: dict[int, list[int]] = {}
    for tile in cut.narrow + cut.wide:
        for row in range(tile.row, tile.row + tile.rows):
            keys.setdefault(row, []).extend(range(tile.begin, tile.end))
    for row, length in enumerate(lengths):
        assert sorted(keys[row]) == list(range(length))
    assert len(keys) == len(lengths) + chunk
    of_decodes = [tile for tile in cut.wide if tile.row < len(lengths)]
    assert max(len(cut.narrow), len(of_decodes)) <= shape.most_tiles
    assert all(parts <= shape.most_parts for parts in cut.parts)
    for tile in cut.narrow + of_decodes:
        parts = cut.parts[tile.row]
        assert (tile.part == tiles.DIRECT) == (parts == 0)
        assert tile.part < max(parts, 1)
