"""Two workers that share each layer: the same answers as one. The last test ends the engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from chat_engine.serving import Serving
from tests.vllm_engine.asking import ask, submit
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.started import Started

PROMPTS = ["Hello!", "What is the capital of France?", "你好，你是谁？", "Count to ten.", "🙂 é"]


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    with pytest.MonkeyPatch.context() as patch:
        cores = sorted(os.sched_getaffinity(0))
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[-1]}")
        started = Started(vllm_settings({"tensor_parallel_size": 2}, drain_seconds=1.0))
    yield started
    started.serving.engine.close()


def test_there_are_two_workers(started: Started) -> None:
    assert len([process for process in started.processes if "Worker" in " ".join(process.cmdline())]) == 2


def test_memory_that_nothing_would_remove_has_no_name(started: Started) -> None:
    own = [file for file in started.memory if file.name.startswith("vllm_dist_")]
    assert own or not hasattr(torch.ops._C, "init_shm_manager"), "its build for this processor has such memory"
    assert [file for file in own if file.exists()] == []


@pytest.mark.parametrize("more", [{}, {"stop": ["e"]}, {"structured_outputs": {"regex": "[a-f]{3,9}x"}}], ids=str)
def test_answers_are_those_of_one(started: Started, native_serving: Serving, more: dict[str, object]) -> None:
    greedy = {"temperature": 0, "max_tokens": 60, **more}
    ours = [submit(started.serving, prompt, **greedy) for prompt in PROMPTS]
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        assert answer.ended.wait(30)
        theirs = ask(native_serving, prompt, **greedy)
        assert (answer.text, answer.last.finish_reason) == (theirs.text, theirs.last.finish_reason), prompt


def test_a_worker_that_is_killed_ends_all_streams_and_the_server(started: Started) -> None:
    """vLLM itself would wait 9 seconds for the other worker first, which waits for the one that is gone."""
    answers = started.running(3)
    errors = started.serving.engine.stats().finished
    os.kill(started.of("Worker").pid, signal.SIGKILL)
    started.ends_all(answers, errors)
