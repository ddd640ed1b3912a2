"""vLLM's processes and their guard, with other processes in their place. Nothing here needs vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chat_engine.vllm import processes as module
from chat_engine.vllm.processes import Process, Processes, descendants
from tests.chat_engine.builders import WAIT

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

# A process that starts one named as vLLM's, which starts another; then it says their numbers and waits.
CORE = """
import subprocess, sys, time
print(subprocess.Popen({sleep!r}, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
sys.path[:0] = {path!r}
from chat_engine.vllm.processes import Processes
processes = Processes()
core = subprocess.Popen([sys.executable, "-c", {core!r}, "VLLM::EngineCore"], stdout=subprocess.PIPE, text=True)
worker = int(core.stdout.readline())
processes.note()
print(processes._guard._process.pid, core.pid, worker, flush=True)
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


@pytest.fixture
def core() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([*SLEEP, "VLLM::EngineCore"])
    yield started
    started.kill()
    started.wait()


def test_the_end_of_a_process_is_noticed_also_of_a_zombie(processes: Processes, core: subprocess.Popen[bytes]) -> None:
    processes.note()
    assert not processes.one_is_gone()
    core.kill()
    assert wait_for(processes.one_is_gone)


def test_all_are_ended_but_nobody_elses(core: subprocess.Popen[bytes]) -> None:
    processes = Processes()  # the core was there before
    own, other = subprocess.Popen([*SLEEP, "VLLM::Worker_TP0"]), subprocess.Popen(SLEEP)
    assert wait_for(lambda: len(module._of_vllm(os.getpid())) == 2)
    processes.close()
    assert own.wait(WAIT) == -signal.SIGKILL
    assert core.poll() is None
    assert other.poll() is None
    assert processes._guard._process.poll() is not None
    other.kill()
    other.wait()


def test_a_number_that_is_used_again_is_another_process(core: subprocess.Popen[bytes]) -> None:
    (found,) = (process for process in descendants(os.getpid()) if process.pid == core.pid)
    another = Process(found.pid, "1")
    assert found.lives
    assert not another.lives
    another.kill()
    assert core.poll() is None


def test_memory_that_no_tracker_removes_loses_its_name(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_SHARED_MEMORY", f"{tmp_path}/")
    names = ["vllm_dist_1", "psm_1"]
    program = (
        "import mmap, sys, time; files = [open(name, 'r+b') for name in sys.argv[2:]];"
        "maps = [mmap.mmap(file.fileno(), 0) for file in files]; print(flush=True); time.sleep(600)"
    )
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 4096)
    files = [str(tmp_path / name) for name in names]
    core = subprocess.Popen([sys.executable, "-c", program, "VLLM::EngineCore", *files], stdout=subprocess.PIPE)
    with core:
        assert core.stdout
        core.stdout.readline()
        processes.note()
        assert [file.name for file in tmp_path.iterdir()] == ["psm_1"]
        assert not processes.one_is_gone()
        core.kill()


@pytest.mark.parametrize("stopped", [False, True], ids=["", "stopped"])
def test_the_guard_ends_what_a_killed_process_leaves(stopped: bool) -> None:
    program = PARENT.format(path=sys.path, core=CORE.format(sleep=SLEEP))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        guard, *numbers = map(int, parent.stdout.readline().split())
        family = [process for process in descendants(parent.pid) if process.pid in (guard, *numbers)]
        assert len(family) == 3
        if stopped:
            for number in numbers:
                os.kill(number, signal.SIGSTOP)
        parent.kill()
        assert wait_for(lambda: not any(process.lives for process in family))
