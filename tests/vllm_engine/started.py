"""An engine of a test's own, whose processes may be killed, and what it has left."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from chat_engine.config import EngineConfig
from chat_engine.errors import EngineFailedError
from chat_engine.request import FinishReason
from chat_engine.serving import Serving, serve
from tests.chat_engine.builders import Inbox
from tests.vllm_engine.asking import submit

LIMIT = 10.0  # seconds within which everybody must know
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 1900}
SHARED_MEMORY = Path("/dev/shm")


def children() -> set[psutil.Process]:
    """But for Python's own, which ends with this process."""
    found = filter(lives, psutil.Process().children(recursive=True))
    return {child for child in found if not any("resource_tracker" in word for word in child.cmdline())}


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def wait_for(condition: Callable[[], bool], seconds: float = LIMIT) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def shared_memory(processes: Iterable[psutil.Process]) -> set[Path]:
    """What they use."""
    files = {Path(entry.path) for process in processes for entry in process.memory_maps()}
    return {file for file in files if file.parent == SHARED_MEMORY}


class Started:
    """An engine of its own, and what it has left."""

    def __init__(self, config: EngineConfig) -> None:
        before = children()
        self.failed = threading.Event()
        self.serving: Serving = serve(config, on_failure=self.failed.set)
        self.processes = children() - before
        self.memory = shared_memory(self.processes)

    def of(self, name: str) -> psutil.Process:
        """The last of vLLM's processes with this in its name."""
        return [process for process in self.processes if name in " ".join(process.cmdline())][-1]

    def running(self, count: int) -> list[Inbox]:
        """Long answers that have begun."""
        inboxes = [submit(self.serving, f"Say {i}.", **LONG) for i in range(count)]
        assert wait_for(lambda: all(inbox.events for inbox in inboxes))
        return inboxes

    def ends_all(self, inboxes: list[Inbox], before: Counter[FinishReason]) -> None:
        """The engine has failed: everybody hears of it in time, and nothing is left once it is closed."""
        assert self.failed.wait(LIMIT)
        for inbox in inboxes:
            assert inbox.last.finish_reason is FinishReason.ERROR
            assert isinstance(inbox.last.error, EngineFailedError)
        engine = self.serving.engine
        assert not engine.is_ready()
        assert engine.complaint() == "the engine failed"
        assert engine.stats().finished[FinishReason.ERROR] - before[FinishReason.ERROR] == len(inboxes)
        with pytest.raises(EngineFailedError):
            submit(self.serving, "Hello!")
        engine.close()
        self.leaves_nothing()

    def leaves_nothing(self) -> None:
        assert wait_for(lambda: not any(map(lives, self.processes)))
        kept = [file for file in self.memory if file.exists()]
        assert [file for file in kept if not file.name.startswith("psm_")] == []  # those go with this process
