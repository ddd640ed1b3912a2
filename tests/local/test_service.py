"""How servers start and stop, alone and together."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from local.process import KeptProcess
from local.service import ServerError, start_together, stop_together
from tests.local.stand_in import StandIn, ended, is_alive


def test_ready_inside_the_block_and_gone_after_it(tmp_path: Path) -> None:
    server = StandIn("page", tmp_path)
    assert server.seconds == 0
    with server:
        assert server.stage == "ready"
        assert server.ready_after_s == server.seconds > 0
        assert server.poll() is None
    assert server.poll() == 0
    assert not is_alive(server.pid)
    assert server.log_tail() == "page speaks"


def test_together_they_stop_in_the_reverse_order(tmp_path: Path) -> None:
    servers = [StandIn(name, tmp_path) for name in ("triton", "gateway", "page")]
    start_together(servers)
    stop_together(servers)
    assert ended(tmp_path) == ["page", "gateway", "triton"]


def test_one_that_depends_on_another_is_not_asked_before_and_its_time_begins_then(tmp_path: Path) -> None:
    triton = StandIn("triton", tmp_path, delay_s=0.5)
    gateway = StandIn("gateway", tmp_path, ready_timeout_s=0.4, after=triton)
    triton.launch()
    gateway.launch()
    try:
        assert not gateway.is_ready()
        assert gateway.stage == "waiting for triton"
        assert gateway.asked == 0
        deadline = time.monotonic() + 10
        while not (triton.is_ready() and gateway.is_ready()):
            assert time.monotonic() < deadline
    finally:
        stop_together([triton, gateway])
    assert triton.ready_after_s is not None
    assert gateway.seconds >= 0.5


def test_one_that_ends_while_starting_is_named_and_takes_the_others_along(tmp_path: Path) -> None:
    triton = StandIn("triton", tmp_path, delay_s=60)
    gateway = StandIn("gateway", tmp_path, delay_s=0.2, exit_code=3)
    with pytest.raises(ServerError) as failure:
        start_together([triton, gateway])
    assert str(failure.value).startswith("gateway stopped while starting (exit code 3); from ")
    assert str(failure.value).endswith("gateway speaks")
    assert triton.poll() == 0


def test_one_that_was_ready_is_watched_until_all_are(tmp_path: Path) -> None:
    gateway = StandIn("gateway", tmp_path)
    triton = StandIn("triton", tmp_path, delay_s=60)
    threading.Thread(target=kill_when_ready, args=(gateway,)).start()
    with pytest.raises(ServerError, match=r"gateway stopped while starting \(exit code 137\)"):
        start_together([triton, gateway])


def test_one_that_is_not_ready_in_time(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="page was not ready within 0 s"):
        StandIn("page", tmp_path, delay_s=60, ready_timeout_s=0.3).start()


def test_one_that_ignores_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    with StandIn("page", tmp_path, stubborn=True, exit_timeout_s=1) as server:
        assert server.stop() == 128 + signal.SIGKILL


def test_ctrl_c_while_they_stop_kills_all(tmp_path: Path) -> None:
    servers = [StandIn(name, tmp_path, stubborn=True, exit_timeout_s=60) for name in ("triton", "gateway", "page")]
    start_together(servers)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    stop_together(servers)
    assert [server.poll() for server in servers] == [128 + signal.SIGKILL] * 3


def test_only_those_that_were_started_are_stopped(tmp_path: Path) -> None:
    servers = [StandIn("triton", tmp_path), StandIn("page", tmp_path)]
    servers[0].start()
    stop_together(servers)
    assert ended(tmp_path) == ["triton"]


def test_only_shared_memory_of_its_own_is_removed(tmp_path: Path) -> None:
    ours, another = (Path(f"/dev/shm/triton_chat_test_{os.getpid()}_{name}") for name in "ab")
    ours.touch()
    another.touch()
    try:
        assert run_true(tmp_path) == 0
        assert ours.exists()
        assert run_true(tmp_path, shm_prefix=ours.name) == 0
        assert not ours.exists()
        assert another.exists()
    finally:
        another.unlink()


def run_true(folder: Path, shm_prefix: str | None = None) -> int:
    process = KeptProcess([sys.executable, "-IS", "-c", ""], os.environ, folder / "log", 1, shm_prefix=shm_prefix)
    while (code := process.poll()) is None:
        time.sleep(0.01)
    process.stop()
    return code


def kill_when_ready(server: StandIn) -> None:
    while server.ready_after_s is None:
        time.sleep(0.01)
    os.kill(server.pid, signal.SIGKILL)
