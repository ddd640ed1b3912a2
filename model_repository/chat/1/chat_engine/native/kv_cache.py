"""Block accounting of the paged KV cache, and prefix reuse. Pure Python: it hands out block numbers, no tensors.

A sequence's KV lives in fixed-size blocks named by its block table (PagedAttention, arXiv:2309.06180). A full block is
remembered under the exact tokens it holds and the block before it, so that another sequence that begins with the same
tokens takes it over instead of computing it again. Keys are the tokens themselves: no hash can collide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

# Names the content of a block: the content before it, and its own tokens.
_Content = tuple[int, tuple[int, ...]]
_ROOT = 0


@dataclass
class BlockTable:
    """The blocks of one sequence, in order, and how many of them are registered for reuse."""

    blocks: list[int] = field(default_factory=list)
    registered: int = 0
    last_content: int = _ROOT


class KVCache:
    """Hands out, shares and takes back blocks. `free + used == total`, always.

    Args:
        num_blocks: blocks in all.
        block_size: tokens in a block.
        prefix_caching: whether finished blocks are kept for reuse until their room is needed.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.total = num_blocks
        self.block_size = block_size
        self._prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        # Free blocks, the one to be given away next in front; those still holding reusable content are among them.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[_Content, tuple[int, int]] = {}  # content -> (block, content id)
        self._content_of: dict[int, _Content] = {}  # block -> content
        self._next_content = _ROOT + 1

    @property
    def free(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that belong to at least one sequence."""
        return self.total - len(self._free)

    @property
    def usage(self) -> float:
        """Used part, 0 to 1."""
        return self.used / self.total

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def begin(self, tokens: SequenceOf[int], spare: int = 0, reusable: int | None = None) -> BlockTable | None:
        """Room for a sequence holding `tokens`, beginning with every block of theirs that is still cached.

        At least the last token is left to compute, since its logits are wanted, and so is all but the first `reusable`
        tokens, where that is given. The caller finds the number of cached tokens as `table.registered * block_size`.

        Returns:
            None when fewer than `spare` blocks would stay free; nothing has changed then.
        """
        table = self._match(tokens, reusable)
        revived = sum(1 for block in table.blocks if self._references[block] == 0)
        fresh = self.blocks_for(len(tokens)) - len(table.blocks)
        if revived + fresh + spare > self.free:
            return None
        for block in table.blocks:
            self._take(block)
        table.blocks += [self._allocate() for _ in range(fresh)]
        return table

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Makes room for `num_tokens` tokens in all. False, and no change, when there are not enough free blocks."""
        missing = self.blocks_for(num_tokens) - len(table.blocks)
        if missing > self.free:
            return False
        table.blocks += [self._allocate() for _ in range(missing)]
        return True

    def register(self, table: BlockTable, tokens: SequenceOf[int], num_computed: int) -> None:
        """Offers the full blocks among the first `num_computed` tokens for reuse."""
        if not self._prefix_caching:
            return
        size = self.block_size
        while (table.registered + 1) * size <= num_computed:
            index = table.registered
            content = (table.last_content, tuple(tokens[index * size : (index + 1) * size]))
            known = self._block_of.get(content)
            if known is None:
                block = table.blocks[index]
                known = (block, self._next_content)
                self._next_content += 1
                self._block_of[content] = known
                self._content_of[block] = content
            table.last_content = known[1]
            table.registered += 1

    def release(self, table: BlockTable) -> None:
        """Takes all blocks of a sequence back. The end of it is given away first: beginnings are shared more often."""
        for block in reversed(table.blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if block not in self._content_of:
                    self._free.move_to_end(block, last=False)
        table.blocks = []
        table.registered = 0
        table.last_content = _ROOT

    def check(self, tables: SequenceOf[BlockTable]) -> None:
        """Asserts that the accounting agrees with the `tables` of all living sequences."""
        expected = [0] * self.total
        for table in tables:
            assert len(set(table.blocks)) == len(table.blocks), "a sequence holds a block twice"
            for block in table.blocks:
                expected[block] += 1
        assert expected == self._references, "reference counts are off"
        assert set(self._free) == {b for b, count in enumerate(expected) if count == 0}, "free list is off"
        assert self.free + self.used == self.total
        assert {b for b, _ in self._block_of.values()} == set(self._content_of)
        assert all(self._block_of[content][0] == block for block, content in self._content_of.items())

    def _match(self, tokens: SequenceOf[int], reusable: int | None = None) -> BlockTable:
        table = BlockTable()
        if not self._prefix_caching:
            return table
        size = self.block_size
        count = len(tokens) - 1 if reusable is None else min(reusable, len(tokens) - 1)
        for start in range(0, count // size * size, size):
            known = self._block_of.get((table.last_content, tuple(tokens[start : start + size])))
            if known is None:
                break
            table.blocks.append(known[0])
            table.registered += 1
            table.last_content = known[1]
        return table

    def _take(self, block: int) -> None:
        self._references[block] += 1
        self._free.pop(block, None)

    def _allocate(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._references[block] = 1
        content = self._content_of.pop(block, None)
        if content is not None:
            del self._block_of[content]
        return block
