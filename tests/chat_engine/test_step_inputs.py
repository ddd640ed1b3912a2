from __future__ import annotations

import torch

from chat_engine.native.paged_cache import Span
from chat_engine.native.step_inputs import Sizes, StepInputs, StepMemory
from chat_engine.native.tiles import DIRECT, Shape, Tile, cut

CPU = torch.device("cpu")


def sizes(rows: int) -> Sizes:
    return Sizes(rows=rows, kept=1, decodes=rows, narrow=2 * rows, wide=0, blocks=8 * rows, most_parts=4)


def fill(inputs: StepInputs, lengths: list[int], tokens: list[int], sources: list[int] | None = None) -> None:
    spans = [Span(row, 1, length, [row + 1, row + 5]) for row, length in enumerate(lengths)]
    tiles = cut(spans, (), 4, Shape(1, 4, len(lengths)))
    inputs.fill(tokens, spans, [0], tiles, 4, sources)


def test_a_step_is_what_the_kernels_read() -> None:
    inputs = StepInputs(sizes(3), CPU)
    fill(inputs, [5, 2], [7, 8], [1, -1])
    assert inputs.tokens[:2].tolist() == [7, 8]
    assert inputs.sources.tolist() == [1, -1, -1]
    assert inputs.positions.tolist() == [4, 1, 0]
    assert inputs.slots.tolist() == [5 * 4, 2 * 4 + 1, -1]
    assert inputs.narrow[:3].tolist() == [
        list(Tile(0, 1, 0, 0, 5, DIRECT)),
        list(Tile(1, 1, 2, 0, 2, DIRECT)),
        list(Tile(2, 1, 0, 0, 0, DIRECT)),  # padding gets zeros
    ]
    assert inputs.blocks[:4].tolist() == [1, 5, 2, 6]


def test_nothing_of_a_larger_step_stays() -> None:
    inputs = StepInputs(sizes(3), CPU)
    fill(inputs, [5, 2, 3], [7, 8, 9])
    fill(inputs, [1], [3])
    assert inputs.tokens.tolist() == [3, 0, 0]
    assert inputs.slots.tolist() == [4, -1, -1]
    assert inputs.narrow[:, 4].tolist() == [1, 0, 0, 0, 0, 0]


def test_rows_of_padding_have_a_token_whatever_a_step_of_another_size_left_there() -> None:
    """-1 of its sources, or the number of a block, is none that the embedding knows."""
    memory = StepMemory(sizes(8), CPU, copies=1)
    fill(StepInputs(sizes(1), CPU, memory), [5], [7])
    larger = StepInputs(sizes(8), CPU, memory)
    fill(larger, [1], [3])
    assert larger.tokens.tolist() == [3] + 7 * [0]


def test_steps_of_several_sizes_take_turns_in_one_memory() -> None:
    memory = StepMemory(sizes(3), CPU, copies=2)
    large, small = StepInputs(sizes(3), CPU, memory), StepInputs(sizes(1), CPU, memory)
    written = set()
    for number in range(6):
        inputs = (large, large, small)[number % 3]
        fill(inputs, [2], [number])
        assert inputs.tokens[:1].tolist() == [number]
        assert inputs.slots[:1].tolist() == [5]
        written.add(memory.hosts[number % 2].data_ptr())
        before, now = memory.hosts[number % 2], memory.hosts[1 - number % 2]
        assert int(now[0]) == number, "the step before may still be read"
        assert number == 0 or int(before[0]) == number - 1
    assert len(written) == 2
