from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chat_engine.native.kv_cache import BlockTable, KVCache
from tests.chat_engine.builders import examples

SIZE = 4


def filled(cache: KVCache, tokens: list[int]) -> BlockTable:
    """A sequence all of whose tokens have been computed."""
    table = cache.begin(tokens)
    assert table is not None
    cache.register(table, tokens, len(tokens))
    return table


def cached_tokens(cache: KVCache, tokens: list[int]) -> int:
    """How much of `tokens` a new sequence would not have to compute. Changes nothing."""
    return cache._match(tokens).registered * cache.block_size


def test_a_new_cache_is_all_free() -> None:
    cache = KVCache(5, SIZE)
    assert (cache.free, cache.used, cache.total, cache.usage) == (5, 0, 5, 0.0)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_blocks_are_counted_rounded_up(tokens: int, blocks: int) -> None:
    assert KVCache(5, SIZE).blocks_for(tokens) == blocks


@pytest.mark.parametrize(("reusable", "cached"), [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (99, 8), (None, 8)])
def test_no_more_than_what_may_be_reused_is_taken_from_the_cache(reusable: int | None, cached: int) -> None:
    cache = KVCache(8, SIZE)
    cache.release(filled(cache, list(range(10))))
    table = cache.begin([*range(10), 99], reusable=reusable)
    assert table is not None
    assert table.registered * SIZE == cached
    cache.check([table])


def test_full_blocks_of_a_finished_sequence_are_reused() -> None:
    cache = KVCache(8, SIZE)
    cache.release(filled(cache, list(range(10))))
    assert cached_tokens(cache, [*range(10), 99]) == 8


def test_a_partly_filled_block_is_not_reused() -> None:
    cache = KVCache(8, SIZE)
    cache.release(filled(cache, [1, 2, 3, 4, 5, 6]))
    assert cached_tokens(cache, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 4


def test_the_last_token_is_always_left_to_compute() -> None:
    cache = KVCache(8, SIZE)
    cache.release(filled(cache, list(range(8))))
    assert cached_tokens(cache, list(range(8))) == 4


def test_blocks_not_computed_yet_are_not_offered() -> None:
    cache = KVCache(8, SIZE)
    tokens = list(range(12))
    table = cache.begin(tokens)
    assert table is not None
    cache.register(table, tokens, 7)
    assert cached_tokens(cache, [*tokens, 99]) == 4


def test_the_same_tokens_behind_another_beginning_are_not_reused() -> None:
    cache = KVCache(8, SIZE)
    cache.release(filled(cache, [1, 1, 1, 1, 2, 2, 2, 2]))
    assert cached_tokens(cache, [2, 2, 2, 2, 3]) == 0
    assert cached_tokens(cache, [9, 9, 9, 9, 2, 2, 2, 2, 3]) == 0


def test_living_sequences_share_blocks_and_each_gives_its_part_back() -> None:
    cache = KVCache(8, SIZE)
    first = filled(cache, list(range(9)))
    second = cache.begin([*range(8), 50])
    assert second is not None
    assert second.blocks[:2] == first.blocks[:2]
    assert cache.used == 4
    cache.release(first)
    cache.check([second])
    assert cache.used == 3
    cache.release(second)
    cache.check([])
    assert cache.used == 0


def test_two_sequences_that_computed_the_same_side_by_side_extend_one_chain() -> None:
    cache = KVCache(8, SIZE)
    tokens = list(range(12))
    first, second = cache.begin(tokens), cache.begin(tokens)
    assert first is not None
    assert second is not None
    assert not set(first.blocks) & set(second.blocks)
    cache.register(first, tokens, 8)
    cache.register(second, tokens, 12)
    cache.check([first, second])
    assert cached_tokens(cache, [*tokens, 99]) == 12


def test_nothing_changes_when_there_is_no_room() -> None:
    cache = KVCache(3, SIZE)
    table = filled(cache, list(range(8)))
    assert cache.begin([50] * 9) is None
    assert not cache.grow(table, 17)
    cache.check([table])
    assert len(table.blocks) == 2


def test_spare_blocks_are_kept_free() -> None:
    cache = KVCache(4, SIZE)
    assert cache.begin([1] * 8, spare=3) is None
    assert cache.begin([1] * 8, spare=2) is not None


def test_blocks_to_be_revived_count_against_the_room() -> None:
    """Cached but unowned blocks are free until somebody takes them over, so taking them over uses room."""
    cache = KVCache(3, SIZE)
    cache.release(filled(cache, list(range(8))))
    assert cache.free == 3
    assert cache.begin([*range(8), 50], spare=1) is None
    assert cache.begin([*range(8), 50]) is not None


def test_growing_within_the_last_block_takes_nothing() -> None:
    cache = KVCache(2, SIZE)
    table = cache.begin([1, 2])
    assert table is not None
    assert cache.grow(table, 4)
    assert cache.used == 1
    assert cache.grow(table, 5)
    assert cache.used == 2


def test_room_comes_from_blocks_without_content_first_then_from_the_oldest_content() -> None:
    cache = KVCache(4, SIZE)
    cache.release(filled(cache, [1] * 4))
    cache.release(filled(cache, [2] * 4))
    third = filled(cache, [3] * 8)
    assert cached_tokens(cache, [1] * 5) == 4
    cache.release(third)
    fourth = filled(cache, [4] * 4)
    assert cached_tokens(cache, [1] * 5) == 0, "the oldest content makes room"
    assert cached_tokens(cache, [2] * 5) == 4
    cache.check([fourth])


def test_a_block_without_content_makes_room_before_older_content() -> None:
    cache = KVCache(3, SIZE)
    first, second = filled(cache, [1] * 4), filled(cache, [2, 2])
    cache.release(first)
    cache.release(second)
    assert cache.begin([3] * 8) is not None
    assert cached_tokens(cache, [1] * 5) == 4


def test_the_end_of_a_sequence_makes_room_before_its_beginning() -> None:
    cache = KVCache(3, SIZE)
    cache.release(filled(cache, list(range(12))))
    other = cache.begin([50] * 4)
    assert other is not None
    assert cached_tokens(cache, [*range(8), 99]) == 8


def test_without_prefix_caching_nothing_is_reused() -> None:
    cache = KVCache(8, SIZE, prefix_caching=False)
    cache.release(filled(cache, list(range(10))))
    assert cached_tokens(cache, list(range(10))) == 0


def test_check_notices_a_lost_block() -> None:
    cache = KVCache(4, SIZE)
    table = cache.begin([1] * 8)
    assert table is not None
    table.blocks.pop()
    with pytest.raises(AssertionError):
        cache.check([table])


class CacheMachine(RuleBasedStateMachine):
    """Sequences come, compute, grow and go, in any order; a model of the cache knows what each block must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.living: list[tuple[BlockTable, list[int], int]] = []
        self.held: dict[int, tuple[int, ...]] = {}  # block -> all tokens from the beginning to its end

    @initialize(blocks=st.integers(1, 14), size=st.integers(1, 4), caching=st.booleans())
    def begin_cache(self, blocks: int, size: int, caching: bool) -> None:
        self.cache = KVCache(blocks, size, caching)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24), spare=st.integers(0, 3))
    def begin(self, tokens: list[int], spare: int) -> None:
        free = self.cache.free
        table = self.cache.begin(tokens, spare)
        if table is None:
            assert self.cache.free == free
            assert self.cache.blocks_for(len(tokens)) + spare > free
            return
        assert self.cache.free >= spare
        assert len(table.blocks) == self.cache.blocks_for(len(tokens))
        reused = table.registered * self.cache.block_size
        assert reused < len(tokens)
        for index in range(table.registered):
            end = (index + 1) * self.cache.block_size
            assert self.held[table.blocks[index]] == tuple(tokens[:end]), "a reused block holds something else"
        self.living.append((table, tokens, reused))

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.living) - 1))
        table, tokens, done = self.living[index]
        done = data.draw(st.integers(done, len(tokens)))
        size = self.cache.block_size
        for block in range(table.registered, done // size):
            self.held[table.blocks[block]] = tuple(tokens[: (block + 1) * size])
        self.cache.register(table, tokens, done)
        self.living[index] = (table, tokens, done)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, more: list[int]) -> None:
        table, tokens, _ = data.draw(st.sampled_from(self.living))
        before = list(table.blocks)
        missing = self.cache.blocks_for(len(tokens) + len(more)) - len(before)
        grown = self.cache.grow(table, len(tokens) + len(more))
        assert table.blocks[: len(before)] == before
        if grown:
            tokens += more
        else:
            assert table.blocks == before
            assert missing > self.cache.free

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table, *_ = self.living.pop(data.draw(st.integers(0, len(self.living) - 1)))
        self.cache.release(table)
        assert table.blocks == []

    @invariant()
    def accounts_agree(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check([table for table, *_ in self.living])

    def teardown(self) -> None:
        for table, *_ in self.living:
            self.cache.release(table)
        if hasattr(self, "cache"):
            self.cache.check([])
            assert self.cache.used == 0


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = examples(150, stateful_step_count=40)


@examples(60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=20), min_size=1, max_size=12))
def test_reuse_is_exactly_the_longest_common_run_of_full_blocks(prompts: list[list[int]]) -> None:
    cache = KVCache(200, SIZE)
    seen: list[list[int]] = []
    for prompt in prompts:
        full = (len(prompt) - 1) // SIZE
        longest = max(
            (
                n
                for n in range(full + 1)
                for other in seen
                if len(other) >= n * SIZE and other[: n * SIZE] == prompt[: n * SIZE]
            ),
            default=0,
        )
        table = cache.begin(prompt)
        assert table is not None
        assert table.registered == longest
        cache.register(table, prompt, len(prompt))
        cache.release(table)
        seen.append(prompt)
