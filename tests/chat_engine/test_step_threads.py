"""How many threads a step gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from chat_engine.native.step_threads import StepThreads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chosen(threads: StepThreads, *rows: int) -> list[int]:
    found = []
    for count in rows:
        threads.choose(count)
        found.append(torch.get_num_threads())
    return found


def computing(threads: StepThreads, first: float, row: float) -> Callable[[int], float]:
    """A model whose step takes `first` with any number of threads, and `row` more for each row with one thread."""

    def seconds(rows: int) -> float:
        threads.choose(rows)
        return first + row * rows / torch.get_num_threads()

    return seconds


@pytest.mark.parametrize(
    ("threads", "cores", "few"),
    [(2, 2, 1), (3, 2, 2), (2, 4, 2), (1, 1, 1), (1, 4, 1)],
    ids=["every core", "more than there are", "some cores", "the only one", "one of several"],
)
def test_steps_of_few_rows_leave_a_core_where_all_are_taken(threads: int, cores: int, few: int) -> None:
    torch.set_num_threads(threads)
    steps = StepThreads(CPU, cores)
    steps.learn(computing(steps, 0.005, 0.0002))  # a bfloat16 model of 82M where processors multiply that
    assert chosen(steps, 1, 8, 9, 512, 2) == [few, few, threads, threads, few]


@pytest.mark.parametrize(("first", "row", "most"), [(0.005, 0.01, 0), (0.005, 0.0009, 8), (0.0, 0.0012, 0)])
def test_they_do_not_where_a_core_is_worth_more_than_what_the_doors_do(first: float, row: float, most: int) -> None:
    torch.set_num_threads(2)
    steps = StepThreads(CPU, 2)
    steps.learn(computing(steps, first, row))
    assert chosen(steps, 1, 2, 4, 8, 9) == [1 if rows <= most else 2 for rows in (1, 2, 4, 8, 9)]


def test_up_to_where_it_is_faster() -> None:
    torch.set_num_threads(2)
    steps = StepThreads(CPU, 2)

    def seconds(rows: int) -> float:
        steps.choose(rows)
        return 0.005 if rows < 4 else 0.02 / torch.get_num_threads()

    steps.learn(seconds)
    assert chosen(steps, 1, 2, 3, 4, 8) == [1, 1, 2, 2, 2]


def test_nothing_is_left_before_that_is_known() -> None:
    torch.set_num_threads(2)
    assert chosen(StepThreads(CPU, 2), 1) == [2]


def test_on_a_gpu_nothing_changes() -> None:
    torch.set_num_threads(2)
    steps = StepThreads(torch.device("cuda"), 2)
    steps.learn(lambda rows: pytest.fail("there is nothing to find out"))
    assert chosen(steps, 1) == [2]
