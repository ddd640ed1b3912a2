from __future__ import annotations

import logging
import threading

import pytest

from triton_chat_server.fetch import progress


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (3_100_000, "3.1 MB"), (13_820_000_000, "13.8 GB")],
)
def test_sizes(count: int, text: str) -> None:
    assert progress.size(count) == text


def test_lines_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    readings = iter([1_000_000, 2_000_000, 3_000_000])
    enough = threading.Event()

    def done() -> int:
        try:
            return next(readings)
        except StopIteration:
            enough.set()
            return 4_000_000

    with progress.reported(4_000_000, done, interval_s=0.001):
        assert enough.wait(10)
    lines = [record.message for record in caplog.records]
    assert lines[0].startswith("2.0 MB of 4.0 MB (50%), ")
    assert lines[1].startswith("3.0 MB of 4.0 MB (75%), ")
    assert all(line.endswith("/s") for line in lines)


def test_a_short_one_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with progress.reported(0, lambda: 0):
        pass
    assert not caplog.records
