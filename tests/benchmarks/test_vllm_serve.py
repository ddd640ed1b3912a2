"""The parts of benchmarks/vllm_serve.py that need no server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from benchmarks.vllm_serve import DOUBTFUL, Figures, Plan, added, ask, chosen, has_text, rate, ratios, report
from benchmarks.vllm_servers import (
    DIRECT,
    OURS,
    SETTINGS,
    ModelShape,
    Setting,
    direct_arguments,
    engine_settings,
    stub_environment,
    vllm_environment,
)
from benchmarks.workload import DEEPSEEK_7B, Job
from chat_engine.config import parse_config
from chat_engine.vllm.arguments import vllm_arguments
from local.options import ROOT

CHECKPOINT = Path("/some/checkpoint")
FLAGS = {"max-model-len", "max-num-seqs", "max-num-batched-tokens", "block-size", "kv-cache-memory-bytes"}
SMALL = SETTINGS[ModelShape.LLAMA_82M]
JOB = Job([5, 6, 7], 2)


def each_setting(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("setting", SETTINGS.values(), ids=[str(name) for name in SETTINGS])(test)


@each_setting
def test_vllm_is_given_the_same_by_itself_and_behind_triton(setting: Setting) -> None:
    on_cpu = bool(setting.cpus)
    known = {"kv_cache_memory_bytes", "enforce_eager"}
    ours = vllm_arguments(parse_config(engine_settings(setting, CHECKPOINT, "vllm")), known, on_cpu=on_cpu)
    direct = direct_arguments(setting, CHECKPOINT)
    given = dict(flag.removeprefix("--").split("=", 1) for flag in direct if "=" in flag)
    for name in {"model", "dtype", "load-format", *FLAGS}:
        assert str(ours[name.replace("-", "_")]) == given[name], name
    assert ours["enforce_eager"] is ("--enforce-eager" in direct)


@each_setting
def test_the_native_engine_has_the_same_room(setting: Setting) -> None:
    native = parse_config(engine_settings(setting, CHECKPOINT, "native"))
    own = parse_config(engine_settings(setting, CHECKPOINT, "vllm"))
    for name in ("dtype", "max_model_len", "max_sequences", "max_step_tokens", "block_size"):
        assert getattr(native, name) == getattr(own, name), name
    assert native.threads == (len(setting.cpus) or None)
    assert native.kv_cache_tokens is not None
    assert native.kv_cache_tokens % setting.block_size == 0
    assert native.kv_cache_tokens >= setting.max_model_len


def test_the_cache_of_a_token() -> None:
    assert DEEPSEEK_7B.kv_bytes == 2 * 30 * 32 * 128 * 2
    assert SMALL.kv_cache_tokens == (1 << 30) // (2 * 9 * 4 * 64 * 2) // 128 * 128
    assert replace(SMALL, dtype="float32").kv_cache_tokens == (1 << 30) // (2 * 9 * 4 * 64 * 4) // 128 * 128


def test_the_command_line_goes_before_the_shape() -> None:
    setting = chosen(ModelShape.DEEPSEEK_7B, [4], 2, None, None)
    assert (setting.streams, setting.cpus, setting.apart, setting.dtype) == ((4,), (), True, "bfloat16")
    setting = chosen(ModelShape.LLAMA_82M, None, 1, "float32", True)
    assert (setting.streams, len(setting.cpus), setting.apart, setting.dtype) == ((1, 8, 32), 1, True, "float32")


def test_every_round_has_prompts_of_its_own() -> None:
    plan = Plan(rounds=3, answers=2, singles=5)
    rounds = [plan.jobs(number, streams) for number in range(4) for streams in (1, 8, 32)]
    rounds += [plan.short_jobs(number) for number in range(4)]
    prompts = [tuple(job.prompt_ids[:32]) for jobs in rounds for job in jobs]
    assert len(set(prompts)) == len(prompts)
    assert [len(plan.jobs(1, streams)) for streams in (1, 8)] == [4, 16]
    assert plan.jobs(1, 8) == plan.jobs(1, 8)


def events(*tokens: str, usage: tuple[int, int] = (3, 2)) -> str:
    choices = [{"choices": [{"text": token}]} for token in tokens]
    counted = {"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in (*choices, counted)) + "data: [DONE]\n\n"


def client(answer: str, status: int = 200) -> httpx2.AsyncClient:
    transport = httpx2.MockTransport(lambda _request: httpx2.Response(status, text=answer))
    return httpx2.AsyncClient(base_url="http://server", transport=transport)


async def test_an_answer_as_long_as_it_must_be() -> None:
    async with client(events("", "w5", "w6")) as server:
        assert await ask(server, JOB) > 0
        assert await rate(server, [JOB] * 5, streams=3) > 0


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (events("w5", usage=(3, 1)), 200, r"\(3, 1\) tokens instead of \(3, 2\)"),
        ("data: [DONE]\n\n", 200, r"\(None, None\) tokens"),
        ("busy", 429, "429: busy"),
    ],
)
async def test_another_answer_ends_the_measurement(answer: str, status: int, says: str) -> None:
    async with client(answer, status) as server:
        with pytest.raises(RuntimeError, match=says):
            await ask(server, JOB)


def test_the_first_token_is_the_first_text() -> None:
    lines = [line for line in events("", "w5").splitlines() if line.startswith("data: {")]
    assert [has_text(line) for line in lines] == [False, True, False]


def test_the_report() -> None:
    setting = replace(SMALL, streams=(1, 32))
    figures = {
        DIRECT: Figures({1: [100.0, 80.0], 32: [1000.0, 800.0]}, [[0.010, 0.012], [0.011, 0.013]]),
        OURS: Figures({1: [100.0, 76.0], 32: [950.0, 784.0]}, [[0.012, 0.014], [0.014, 0.015]]),
    }
    assert ratios(figures, 32) == [0.95, 0.98]
    assert added(figures) == pytest.approx([2.0, 2.0, 3.0, 2.0])
    text = report(figures, setting, "What was measured.")
    assert "| server | 1 stream | 32 streams | first token, ms |" in text
    assert "| vllm serve | 90 (80 to 100) | 900 (800 to 1000) | 11.5 (10.2 to 12.8) |" in text
    assert "98% (95% to 100%) at 1; 96% (95% to 98%) at 32" in text
    assert "Added to the first token: 2.0 (2.0 to 2.8) ms" in text
    assert text.endswith("What was measured.\n")
    alone = report({OURS: figures[OURS]}, setting, "")
    assert "Added" not in alone


def test_a_tritonserver_finds_the_python_of_vllm_first() -> None:
    import sys
    import sysconfig

    found = stub_environment(Path(sys.executable), {"PATH": "/usr/bin"})
    assert found == {"PATH": f"{Path(sys.executable).parent}:/usr/bin", "PYTHONPATH": sysconfig.get_path("purelib")}


@each_setting
def test_vllm_spins_as_long_in_either_server(setting: Setting) -> None:
    """Models in Triton set it for themselves and for their children; without it `vllm serve` is measured otherwise."""
    source = (ROOT / "model_repository" / "chat" / "1" / "triton_io" / "__init__.py").read_text(encoding="utf-8")
    (ours,) = re.findall(r'setdefault\("GOMP_SPINCOUNT", "(\d+)"\)', source)
    assert vllm_environment(setting)["GOMP_SPINCOUNT"] == ours


@pytest.mark.parametrize(("ours", "doubtful"), [(98.0, False), (104.0, False), (106.0, True), (600.0, True)])
def test_a_run_in_which_doors_make_vllm_faster_is_doubtful(ours: float, doubtful: bool) -> None:
    times = [[0.010, 0.012]]
    figures = {DIRECT: Figures({32: [100.0, 100.0]}, times), OURS: Figures({32: [ours, ours]}, times)}
    assert (DOUBTFUL in report(figures, replace(SMALL, streams=(32,)), "")) is doubtful
