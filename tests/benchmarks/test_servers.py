"""All servers are given the same."""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.command import chosen
from benchmarks.servers import engine_settings, stub_environment, vllm_arguments
from benchmarks.setting import SETTINGS, ModelShape, Setting, thread_environment
from benchmarks.workload import DEEPSEEK_7B
from chat_engine.config import parse_config
from chat_engine.vllm import arguments
from local.options import ROOT

CHECKPOINT = Path("/some/checkpoint")
FLAGS = {"max-model-len", "max-num-seqs", "max-num-batched-tokens", "block-size", "kv-cache-memory-bytes"}
SMALL = SETTINGS[ModelShape.LLAMA_82M]


def each_setting(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("setting", SETTINGS.values(), ids=[str(name) for name in SETTINGS])(test)


@each_setting
def test_vllm_is_given_the_same_by_itself_and_behind_triton(setting: Setting) -> None:
    on_cpu = bool(setting.cpus)
    known = {"kv_cache_memory_bytes", "enforce_eager"}
    config = parse_config(engine_settings(setting, CHECKPOINT, "vllm"))
    ours = arguments.vllm_arguments(config, known, on_cpu=on_cpu)
    direct = vllm_arguments(setting, CHECKPOINT)
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
    setting = chosen(ModelShape.DEEPSEEK_7B, 2, None, None, apart=None)
    assert (setting.cpus, setting.apart, setting.dtype, setting.max_step_tokens) == ((), True, "bfloat16", 8192)
    setting = chosen(ModelShape.LLAMA_82M, 1, "float32", 256, apart=True)
    assert (len(setting.cpus), setting.apart, setting.dtype, setting.max_step_tokens) == (1, True, "float32", 256)


def test_a_tritonserver_finds_the_python_of_vllm_first() -> None:
    found = stub_environment(Path(sys.executable), {"PATH": "/usr/bin"})
    assert found == {"PATH": f"{Path(sys.executable).parent}:/usr/bin", "PYTHONPATH": sysconfig.get_path("purelib")}


def test_all_spin_as_long_as_models_in_triton() -> None:
    """These set it for themselves and for their children; without it `vllm serve` is measured otherwise."""
    source = (ROOT / "model_repository" / "chat" / "1" / "triton_io" / "__init__.py").read_text(encoding="utf-8")
    (ours,) = re.findall(r'setdefault\("GOMP_SPINCOUNT", "(\d+)"\)', source)
    assert thread_environment((0, 1)) == {"GOMP_SPINCOUNT": ours, "OMP_NUM_THREADS": "2"}
    assert thread_environment(()) == {"GOMP_SPINCOUNT": ours}
