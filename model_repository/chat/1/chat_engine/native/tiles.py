"""How the attention of one step is cut into tiles, of which each is one program of the kernels. Pure functions.

A tile is some neighbouring rows and a range of keys. Long contexts are cut along their keys, so that a few sequences
occupy a whole GPU (split-KV decoding, Flash-Decoding 2023); decodes that begin with the same blocks have tiles of many
rows over these (cascade attention, FlashInfer 2024). The parts of a row are put together by their log-sum-exp.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chat_engine.native.decodes import Beginning
from chat_engine.native.paged_cache import Span

DIRECT = -1
"""The part of a tile whose rows have no other: it writes the result itself."""
# Fewer keys than these are not cut.
_WORTH_KEYS = 256
_MAX_PARTS = 64
# Rows times parts: what is held of the decodes of a step until their parts are put together.
_MAX_PARTIALS = 1024


class Tile(NamedTuple):
    """What one program of the attention kernel computes, for each KV head.

    Attributes:
        row: its first query row.
        rows: neighbours, whose positions do not fall.
        blocks: where its sequence's block numbers begin among those of the step.
        begin: its first key; and those before `end` that a row may see, it sees.
        end: after its last key.
        part: which of its rows' parts this is, or `DIRECT`.
    """

    row: int
    rows: int
    blocks: int
    begin: int
    end: int
    part: int


@dataclass(frozen=True)
class Shape:
    """How tiles are to be cut.

    Attributes:
        wanted: tiles that occupy the device.
        wide: rows of a tile of many rows.
        decodes: for how many decodes there is room.
    """

    wanted: int
    wide: int
    decodes: int

    @property
    def most_parts(self) -> int:
        """Into how many parts a decode may be cut."""
        return max(4, min(_MAX_PARTS, _MAX_PARTIALS // max(1, self.decodes)))

    @property
    def most_tiles(self) -> int:
        """No more narrow tiles than these, and no more wide ones, are needed for decodes."""
        return self.decodes + self.wanted


@dataclass
class Tiles:
    """One step.

    Attributes:
        narrow: tiles of one row.
        wide: tiles of many.
        parts: of each decode.
        blocks: of all sequences, one after the other.
    """

    narrow: list[Tile] = field(default_factory=list)
    wide: list[Tile] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


def cut(spans: Sequence[Span], beginnings: Sequence[Beginning], block_size: int, shape: Shape) -> Tiles:
    """The tiles of a step, whose spans stand in attention order: decodes that share, other decodes, prefills."""
    tiles = Tiles()
    firsts = list(itertools.accumulate((len(span.blocks) for span in spans), initial=0))
    tiles.blocks = [block for span in spans for block in span.blocks]
    decodes = sum(span.count == 1 for span in spans)
    assert decodes <= shape.decodes
    most = shape.most_parts // 2  # of what is shared, and of what is not
    begins = [0] * decodes
    tiles.parts = [0] * decodes
    shared_keys = sum(b.blocks * block_size * -(-b.count // shape.wide) for b in beginnings)
    for beginning in beginnings:
        keys = beginning.blocks * block_size
        ranges = _ranges(0, keys, _length(shared_keys, shape.wanted, keys, most))
        members = range(beginning.first, beginning.first + beginning.count)
        for part, (begin, end) in enumerate(ranges):
            for row in members[:: shape.wide]:
                rows = min(shape.wide, members.stop - row)
                tiles.wide.append(Tile(row, rows, firsts[beginning.first], begin, end, part))
        for row in members:
            begins[row] = keys
            tiles.parts[row] = len(ranges)
    own = [spans[row].length - begins[row] for row in range(decodes)]
    total = sum(own)
    for row, keys in enumerate(own):
        length = _length(total, shape.wanted, keys, most)
        before = tiles.parts[row]
        if not before and keys <= length:
            tiles.narrow.append(Tile(row, 1, firsts[row], 0, keys, DIRECT))
            continue
        ranges = _ranges(begins[row], spans[row].length, length)
        tiles.narrow += [Tile(row, 1, firsts[row], b, e, before + i) for i, (b, e) in enumerate(ranges)]
        tiles.parts[row] = before + len(ranges)
    for span, first in zip(spans[decodes:], firsts[decodes:], strict=False):
        for row in range(0, span.count, shape.wide):
            rows = min(shape.wide, span.count - row)
            end = span.length - span.count + row + rows
            tiles.wide.append(Tile(span.start + row, rows, first, 0, end, DIRECT))
    return tiles


def _length(total: int, wanted: int, keys: int, most: int) -> int:
    """Keys of a tile, so that about `wanted` share all the keys and none of `keys` is cut into more than `most`."""
    length = max(_WORTH_KEYS, -(-total // wanted), -(-keys // most))
    return -(-length // 64) * 64


def _ranges(begin: int, end: int, length: int) -> list[tuple[int, int]]:
    return [(first, min(first + length, end)) for first in range(begin, end, length)]
