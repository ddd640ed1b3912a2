"""vLLM fails in other ways than by the death of a process: everybody is told, once, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from chat_engine.errors import ConfigError, EngineFailedError
from chat_engine.serving import serve
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.started import LIMIT, Started, children, lives, shared_memory, wait_for

BREAKING = {"worker_extension_cls": "tests.vllm_engine.breaking.Breaking"}


def from_now_on(started: Started, what: str) -> None:
    """Has each worker do so; the call behind the door that only a test makes."""
    model = started.serving.engine._model
    model.loop.call(model.llm.collective_rpc(f"{what}_from_now_on"))


def test_a_step_that_fails_ends_all_streams_and_the_server() -> None:
    started = Started(vllm_settings(BREAKING, drain_seconds=1.0))
    answers = started.running(3)
    before = started.serving.engine.stats().finished
    from_now_on(started, "fail")
    started.ends_all(answers, before)


@pytest.mark.parametrize("where", ["forward", "core"])
def test_a_stuck_process_is_noticed_and_given_up(where: str) -> None:
    started = Started(vllm_settings(BREAKING, drain_seconds=1.0, stall_seconds=3.0))
    engine = started.serving.engine
    (answer,) = started.running(1)
    if where == "forward":
        from_now_on(started, "hang")
    else:
        os.kill(started.of("EngineCore").pid, signal.SIGSTOP)
    assert wait_for(lambda: engine.complaint() is not None)
    assert "no step" in str(engine.complaint())
    assert not engine.is_ready()
    engine.give_up()  # as the stall watch of the model does
    assert answer.ended.wait(LIMIT)
    assert isinstance(answer.last.error, EngineFailedError)
    engine.close()
    started.leaves_nothing()


MODEL = """
import sys, time
sys.path[:0] = {path!r}
if __name__ == "__main__":
    from tests.vllm_engine.started import LONG, Started
    from tests.vllm_engine.conftest import vllm_settings
    started = Started(vllm_settings())
    started.running(2)
    print("it runs", flush=True)
    time.sleep(3600)
"""


def test_a_model_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    """vLLM's core does not notice it by itself, and one that is stopped never would."""
    program = tmp_path / "model.py"
    program.write_text(MODEL.format(path=sys.path))
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as model:
        assert model.stdout
        assert any("it runs" in line for line in model.stdout)
        family = psutil.Process(model.pid).children(recursive=True)
        core = next(process for process in family if "EngineCore" in " ".join(process.cmdline()))
        os.kill(core.pid, signal.SIGSTOP)
        files = shared_memory(family)
        assert files
        model.kill()
        assert wait_for(lambda: not any(map(lives, family)))
        assert [file for file in files if file.exists()] == []


def test_what_vllm_cannot_load_is_said_and_leaves_nothing_behind() -> None:
    before = children()
    with pytest.raises(ConfigError, match="vLLM could not load the model"):
        serve(vllm_settings({"kv_cache_memory_bytes": 1 << 16}), on_failure=lambda: None)
    assert wait_for(lambda: not any(map(lives, children() - before)))
