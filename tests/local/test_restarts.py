"""How often a server is started again, and after how long."""

from __future__ import annotations

import signal
import threading

import pytest

from local import console
from local.restarts import FIRST_WAIT_S, HEALTHY_S, MOST_RESTARTS, Restarts, keep_running


def test_each_wait_is_twice_the_last_and_then_it_is_enough() -> None:
    restarts = Restarts()
    waits = [restarts.next_wait_s(1.0) for _ in range(MOST_RESTARTS + 1)]
    assert waits == [*(FIRST_WAIT_S * 2**n for n in range(MOST_RESTARTS)), None]
    assert sum(filter(None, waits)) < 30


def test_a_server_that_was_healthy_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(100):
        assert restarts.next_wait_s(HEALTHY_S) == FIRST_WAIT_S
        assert restarts.next_wait_s(0.0) == 2 * FIRST_WAIT_S


def test_a_signal_ends_it_although_its_exception_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in a destructor, in which Python only reports it."""
    monkeypatch.setattr(console, "ENDING", threading.Event())
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            console._interrupt(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    keep_running([], print, console.ENDING)
