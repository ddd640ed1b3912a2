"""The launcher as its user meets it: what it says, how it ends, and that nothing is left. With stand-in servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local.options import ROOT
from tests.local.stand_in import ended, is_alive

LAUNCHER = """
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from local import console, restarts, serve
from tests.local.stand_in import StandIn

restarts.LOOK_S, restarts.FIRST_WAIT_S, restarts.UNANSWERED_S = 0.05, 0.01, 1.0
folder = Path(sys.argv.pop())
servers = [StandIn(name, folder, OPTIONS) for name in ("triton", "gateway", "page")]
serve.stack_of = lambda environment: SimpleNamespace(servers=servers)
serve.overview = lambda stack: " ".join(["pids", *(str(server.pid) for server in servers)])
import typer
typer.run(serve.run)
"""


def test_sigterm_stops_all_in_order_with_0(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, pids):
        launcher.terminate()
        assert launcher.wait(10) == 0
        assert ended(tmp_path) == ["page", "gateway", "triton"]
        assert not any(map(is_alive, pids))


def test_ctrl_c_stops_all_with_0(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, _pids):
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(10) == 0
        assert ended(tmp_path) == ["page", "gateway", "triton"]


def test_a_second_ctrl_c_kills_but_a_second_sigterm_does_not(tmp_path: Path) -> None:
    with launched(tmp_path, "stubborn=True, exit_timeout_s=60") as (launcher, pids):
        launcher.terminate()
        time.sleep(0.3)
        launcher.terminate()
        time.sleep(0.3)
        assert all(map(is_alive, pids))
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(10) == 0
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_dies_or_answers_no_more_is_started_again(tmp_path: Path, index: int, number: signal.Signals) -> None:
    with launched(tmp_path) as (launcher, pids):
        os.kill(pids[index], number)
        name = ("triton", "gateway", "page")[index]
        assert launcher.stdout is not None
        lines = []
        for line in launcher.stdout:
            lines.append(line)
            if "is back" in line:
                break
        what = "died (exit code 137)" if number == signal.SIGKILL else "has not answered for 1 s and was ended"
        assert lines[-4:-1] == [
            f"{name} {what}; the end of its log:\n",
            f"{name} speaks\n",
            f"{name} is started again in 0.01 s\n",
        ]
        assert lines[-1].startswith(f"{name} is back")
        launcher.terminate()
        assert launcher.wait(10) == 0
        assert ended(tmp_path) == ["page", "gateway", "triton"]


def test_one_that_dies_again_and_again_ends_all_with_a_clear_line_and_1(tmp_path: Path) -> None:
    with launched(tmp_path, 'crashes=name == "gateway"') as (launcher, pids):
        os.kill(pids[1], signal.SIGKILL)
        output, _ = launcher.communicate(timeout=30)
        assert output.splitlines()[-1] == "gateway failed 6 times in a row; giving up"
        assert output.count("gateway is started again in") == 5
        assert launcher.returncode == 1
        assert not any(map(is_alive, pids))


def test_a_killed_launcher_leaves_nothing(tmp_path: Path) -> None:
    with launched(tmp_path) as (launcher, pids):
        launcher.kill()
        wait_for(lambda: not any(map(is_alive, pids)))
        assert sorted(ended(tmp_path)) == ["gateway", "page", "triton"]


def test_one_that_does_not_start_ends_all_with_1(tmp_path: Path) -> None:
    launcher = start(tmp_path, 'exit_code=7 if name == "gateway" else None')
    output, _ = launcher.communicate(timeout=10)
    assert "gateway stopped while starting (exit code 7)" in output
    assert "gateway speaks" in output
    assert launcher.returncode == 1


def test_ctrl_c_while_starting_leaves_nothing(tmp_path: Path) -> None:
    launcher = start(tmp_path, "delay_s=60")
    wait_for(lambda: len([log for log in tmp_path.glob("*.log") if log.stat().st_size]) == 3)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(10) == 0
    assert ended(tmp_path) == ["page", "gateway", "triton"]


@contextmanager
def launched(folder: Path, options: str = "") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A launcher whose servers are ready, and their process ids."""
    launcher = start(folder, options)
    assert launcher.stdout is not None
    try:
        for line in launcher.stdout:
            if line.startswith("pids"):
                yield launcher, [int(pid) for pid in line.split()[1:]]
                return
        pytest.fail("the launcher ended early")
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()


def start(folder: Path, options: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.replace("OPTIONS", options), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
