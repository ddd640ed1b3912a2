"""How many threads a step gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chat_engine.native.step_threads import StepThreads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "cores", "few"),
    [(2, 2, 1), (3, 2, 2), (2, 4, 2), (1, 1, 1), (1, 4, 1)],
    ids=["every core", "more than there are", "some cores", "the only one", "one of several"],
)
def test_steps_of_few_rows_leave_a_core_where_all_are_taken(threads: int, cores: int, few: int) -> None:
    torch.set_num_threads(threads)
    chosen = StepThreads(CPU, cores)
    for rows, expected in ((1, few), (8, few), (9, threads), (512, threads), (2, few)):
        chosen.choose(rows)
        assert torch.get_num_threads() == expected


def test_on_a_gpu_nothing_changes() -> None:
    torch.set_num_threads(2)
    StepThreads(torch.device("cuda"), 2).choose(1)
    assert torch.get_num_threads() == 2
