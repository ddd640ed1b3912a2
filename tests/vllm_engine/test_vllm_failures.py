"""vLLM's processes die, or their server stops: everybody is told, once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil
import pytest

from chat_engine.errors import ConfigError, DrainingError, EngineFailedError
from chat_engine.request import FinishReason
from chat_engine.serving import Serving, serve
from tests.chat_engine.builders import Inbox
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.test_vllm_engine import submit

LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 1900}
LIMIT = 10.0  # seconds within which everybody must know


def children() -> set[psutil.Process]:
    """But for Python's own, which ends with this process."""
    found = filter(lives, psutil.Process().children(recursive=True))
    return {child for child in found if not any("resource_tracker" in word for word in child.cmdline())}


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool], seconds: float = LIMIT) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


class Started:
    """An engine of its own, and what it has left."""

    def __init__(self, **more: object) -> None:
        self._before = children()
        self.failed = threading.Event()
        self.serving: Serving = serve(vllm_settings(drain_seconds=1.0, **more), on_failure=self.failed.set)
        self.processes = children() - self._before

    def of(self, name: str) -> psutil.Process:
        return next(process for process in self.processes if name in " ".join([process.name(), *process.cmdline()]))

    def running(self, count: int) -> list[Inbox]:
        inboxes = [submit(self.serving, f"Say {i}.", **LONG) for i in range(count)]
        assert wait_for(lambda: all(inbox.events for inbox in inboxes))
        return inboxes

    def leaves_nothing(self) -> bool:
        return wait_for(lambda: not any(map(lives, self.processes)))


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
def test_a_dead_process_ends_all_streams_and_the_server(name: str, busy: bool) -> None:
    started = Started()
    engine = started.serving.engine
    try:
        inboxes = started.running(3) if busy else []
        os.kill(started.of(name).pid, signal.SIGKILL)
        assert started.failed.wait(LIMIT)
        for inbox in inboxes:
            assert inbox.last.finish_reason is FinishReason.ERROR
            assert isinstance(inbox.last.error, EngineFailedError)
        assert not engine.is_ready()
        assert engine.complaint() == "the engine failed"
        assert engine.stats().finished[FinishReason.ERROR] == len(inboxes)
        with pytest.raises(EngineFailedError):
            submit(started.serving, "Hello!")
    finally:
        engine.close()
    assert started.leaves_nothing()


def test_a_server_that_stops_lets_answers_end_and_ends_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    started = Started()
    engine = started.serving.engine
    short = submit(started.serving, "Hello!", temperature=0, ignore_eos=True, max_tokens=20)
    (long,) = started.running(1)
    assert not engine.drain(0.0)
    with pytest.raises(DrainingError):
        submit(started.serving, "Hello!")
    assert short.ended.wait(LIMIT)
    engine.close()
    assert short.last.finish_reason is FinishReason.LENGTH
    assert long.last.finish_reason is FinishReason.ERROR
    assert isinstance(long.last.error, DrainingError)
    assert not started.failed.is_set()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    assert started.leaves_nothing()


def test_a_stuck_process_is_noticed_and_given_up() -> None:
    started = Started(stall_seconds=3.0)
    engine = started.serving.engine
    (inbox,) = started.running(1)
    os.kill(started.of("EngineCore").pid, signal.SIGSTOP)
    assert wait_for(lambda: engine.complaint() is not None)
    assert "no step" in str(engine.complaint())
    assert not engine.is_ready()
    engine.give_up()  # as the stall watch of the model does
    assert inbox.ended.wait(LIMIT)
    assert isinstance(inbox.last.error, EngineFailedError)
    engine.close()
    assert started.leaves_nothing()


def test_what_vllm_cannot_load_is_said_and_leaves_nothing_behind() -> None:
    before = children()
    config = vllm_settings()
    small = config.model_copy(update={"vllm": {**config.vllm, "kv_cache_memory_bytes": 1 << 16}})
    with pytest.raises(ConfigError, match="vLLM could not load the model"):
        serve(small, on_failure=lambda: None)
    assert wait_for(lambda: not any(map(lives, children() - before)))


def test_more_than_the_cache_holds_is_put_back_and_answered(native_serving: Serving) -> None:
    started = Started(block_size=32, kv_cache_tokens=2112)  # a context and a little
    long = {"temperature": 0, "ignore_eos": True, "max_tokens": 400}
    try:
        inboxes = [submit(started.serving, f"Say {i}.", **long) for i in range(8)]
        assert all(inbox.ended.wait(60) for inbox in inboxes)
        stats = started.serving.engine.stats()
        assert stats.preemptions > 0
        assert [inbox.output for inbox in inboxes] == [400] * 8
        theirs = [submit(native_serving, f"Say {i}.", **long) for i in range(8)]
        assert all(inbox.ended.wait(60) for inbox in theirs)
        assert [inbox.text for inbox in inboxes] == [inbox.text for inbox in theirs]
    finally:
        started.serving.engine.close()
