"""Whoever is alone waits for all, and all wait for him; the others go side by side."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.turns import turn

WAIT_S = 10.0


class Taken:
    """A turn in a thread; opened files of one process wait for each other like those of several."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._take, args=(folder, alone), daemon=True)
        self.thread.start()

    def _take(self, folder: Path, alone: bool) -> None:
        with turn(folder, alone=alone):
            self.begun.set()
            self.end.wait(WAIT_S)

    def over(self) -> None:
        self.end.set()
        self.thread.join(WAIT_S)


def somebody_waits(folder: Path) -> bool:
    """At the head of the line."""
    with (folder / "next").open("w") as line:
        try:
            fcntl.flock(line, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def taken() -> Iterator[list[Taken]]:
    taken: list[Taken] = []
    yield taken
    for one in taken:
        one.over()


def test_others_go_side_by_side(tmp_path: Path, taken: list[Taken]) -> None:
    taken += [Taken(tmp_path, alone=False) for _ in range(3)]
    assert all(one.begun.wait(WAIT_S) for one in taken)


@pytest.mark.parametrize("alone", [True, False])
def test_one_that_is_alone_is_waited_for(tmp_path: Path, taken: list[Taken], alone: bool) -> None:
    taken.append(Taken(tmp_path, alone=True))
    assert taken[0].begun.wait(WAIT_S)
    taken.append(Taken(tmp_path, alone=alone))
    assert not taken[1].begun.wait(0.1)
    taken[0].over()
    assert taken[1].begun.wait(WAIT_S)


def test_one_that_is_alone_waits_and_nobody_overtakes_it(tmp_path: Path, taken: list[Taken]) -> None:
    taken.append(Taken(tmp_path, alone=False))
    assert taken[0].begun.wait(WAIT_S)
    taken.append(Taken(tmp_path, alone=True))
    while not somebody_waits(tmp_path):
        assert not taken[1].begun.wait(0.01)
    taken.append(Taken(tmp_path, alone=False))
    assert not taken[2].begun.wait(0.1)
    taken[0].over()
    assert taken[1].begun.wait(WAIT_S)
    assert not taken[2].begun.is_set()
    taken[1].over()
    assert taken[2].begun.wait(WAIT_S)
