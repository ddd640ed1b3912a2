"""What a forward pass over tiles reads, brought to the device in one copy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chat_engine.native.paged_cache import Span
from chat_engine.native.tiles import DIRECT, Shape, Tile, Tiles

_FIELDS = len(Tile._fields)
_ALIGNED = 4  # 16 bytes: kernels are compiled anew for what lies otherwise


@dataclass(frozen=True)
class Sizes:
    """How much of each there is room for."""

    rows: int
    kept: int
    decodes: int
    narrow: int
    wide: int
    blocks: int
    most_parts: int

    @classmethod
    def of(cls, rows: int, kept: int, tiles: Tiles, shape: Shape, padding: int = 0) -> Sizes:
        """Just what one step of so many rows needs, some of them padding."""
        return cls(
            rows=rows,
            kept=kept,
            decodes=len(tiles.parts),
            narrow=len(tiles.narrow) + padding,
            wide=len(tiles.wide),
            blocks=len(tiles.blocks),
            most_parts=shape.most_parts if any(tiles.parts) else 0,
        )

    @property
    def lengths(self) -> list[int]:
        """Of the parts of the memory of a step, in int32."""
        rows = [self.rows] * 4
        return [*rows, self.kept, self.decodes, _FIELDS * self.narrow, _FIELDS * self.wide, self.blocks]

    @property
    def begins(self) -> list[int]:
        """Where these parts begin, and the end."""
        aligned = (-(-length // _ALIGNED) * _ALIGNED for length in self.lengths)
        return list(itertools.accumulate(aligned, initial=0))


class StepMemory:
    """Memory for steps of these sizes, and smaller ones: one piece on the device, and `copies` of it on the host.

    With two, a step can be written while the one before is still on its way to the device.
    """

    def __init__(self, sizes: Sizes, device: torch.device, copies: int) -> None:
        count, pinned = sizes.begins[-1], device.type == "cuda"
        self.hosts = [torch.zeros(count, dtype=torch.int32, pin_memory=pinned) for _ in range(copies)]
        self.device = torch.zeros(count, dtype=torch.int32, device=device)
        self._turn = 0

    def take_turn(self) -> int:
        """Which of `hosts` is to be written next."""
        self._turn = (self._turn + 1) % len(self.hosts)
        return self._turn


class StepInputs:
    """One step's numbers, int32, in one piece of memory on the host and one on the device.

    Attributes:
        tokens: `[rows]`.
        sources: `[rows]`, the place among the tokens of the step before that a row takes instead; -1: none.
        positions: `[rows]`, of the rows in their sequences.
        slots: `[rows]`, where in the flattened cache each row's keys and values go; -1: nowhere.
        kept: `[kept]`, the rows whose logits are wanted.
        parts: `[decodes]`, into how many parts each is cut; 0 where a tile writes the result itself.
        narrow: `[narrow, 6]`, tiles of one row.
        wide: `[wide, 6]`, tiles of many.
        blocks: `[blocks]`, block numbers that the tiles point to.
        most_parts: of any decode; 0 where no tile has a part.
    """

    def __init__(self, sizes: Sizes, device: torch.device, memory: StepMemory | None = None) -> None:
        """In memory of its own, or in one that several share; what one has read is lost once another is filled."""
        self.most_parts = sizes.most_parts
        begins = sizes.begins
        self._memory = memory or StepMemory(sizes, device, copies=1)
        self._blocks_begin = begins[-2]
        parts = [slice(begin, begin + length) for begin, length in zip(begins, sizes.lengths, strict=False)]
        (
            self.tokens, self.sources, self.positions, self.slots, self.kept, self.parts, narrow, wide, self.blocks,
        ) = (self._memory.device[part] for part in parts)  # fmt: skip
        self.narrow, self.wide = narrow.view(-1, _FIELDS), wide.view(-1, _FIELDS)
        self._written = [[host.numpy()[part] for part in parts] for host in self._memory.hosts]

    def fill(
        self,
        tokens: list[int],
        spans: Sequence[Span],
        kept: list[int],
        tiles: Tiles,
        block_size: int,
        sources: list[int] | None = None,
    ) -> None:
        """Writes a step; `sources` are of its decodes, which come first.

        Rows beyond it write nothing to the cache, and attend to nothing.
        """
        turn = self._memory.take_turn()
        token, source, position, slot, keep, part, narrow, wide, blocks = self._written[turn]
        count, decodes = len(tokens), len(tiles.parts)
        positions, slots = _places(spans, decodes, block_size)
        token[:count], token[count:] = tokens, 0
        source[:] = -1
        if sources:
            source[:decodes] = sources[:decodes]
        position[:count], position[count:] = positions, 0
        slot[:count], slot[count:] = slots, -1
        keep[: len(kept)] = kept
        part[:decodes], part[decodes:] = tiles.parts, 0
        padding = [Tile(row, 1, 0, 0, 0, DIRECT) for row in range(count, len(token))]
        for written, some in ((narrow, tiles.narrow + padding), (wide, tiles.wide)):
            if some:
                written[: _FIELDS * len(some)] = np.array(some, dtype=np.int32).ravel()
            written[_FIELDS * len(some) :] = 0
        blocks[: len(tiles.blocks)] = tiles.blocks
        end = self._blocks_begin + len(tiles.blocks)
        self._memory.device[:end].copy_(self._memory.hosts[turn][:end], non_blocking=True)

    def known_tokens(self, last: Tensor) -> Tensor:
        """`[rows]`: the tokens, those among them that the step before has made taken from `last`, `[tokens]`."""
        return torch.where(self.sources < 0, self.tokens, last[self.sources.clamp(min=0)])


def _places(spans: Sequence[Span], decodes: int, block_size: int) -> tuple[list[int], list[int]]:
    """The position of each row in its sequence, and its slot in the cache."""
    positions = [span.length - 1 for span in spans[:decodes]]
    slots = [
        span.blocks[position // block_size] * block_size + position % block_size
        for span, position in zip(spans, positions, strict=False)
    ]
    for span in spans[decodes:]:
        places = np.arange(span.length - span.count, span.length)
        positions += places.tolist()
        blocks = np.array(span.blocks)
        slots += (blocks[places // block_size] * block_size + places % block_size).tolist()
    return positions, slots
