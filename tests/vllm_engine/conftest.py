from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_engine.config import EngineConfig, parse_config
from chat_engine.serving import Serving, serve

TINY = Path(__file__).parents[2] / "models" / "tiny-chat"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever stands here needs vLLM, and loads for long."""
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(600))
            if missing:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed in this Python"))


def settings(**more: object) -> EngineConfig:
    return parse_config({"model": str(TINY), "device": "cpu", "dtype": "float32", **more})


def vllm_settings(vllm: dict[str, object] | None = None, **more: object) -> EngineConfig:
    block = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28, **(vllm or {})}
    return settings(**{"engine": "vllm", "vllm": block, "max_sequences": 8, **more})


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture(scope="session")
def failures() -> list[int]:
    return []


@pytest.fixture(scope="session")
def vllm_serving(failures: list[int]) -> Iterator[Serving]:
    """One for all tests that leave it whole."""
    serving = serve(vllm_settings(), on_failure=lambda: failures.append(1))
    yield serving
    serving.engine.close()


@pytest.fixture(scope="session")
def native_serving() -> Iterator[Serving]:
    serving = serve(settings(threads=1, max_step_tokens=64), on_failure=lambda: None)
    yield serving
    serving.engine.close()


def messages(text: str) -> bytes:
    return json.dumps([{"role": "user", "content": text}]).encode()
