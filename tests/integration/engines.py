"""Which engine the tests here run against: `--engine vllm` takes the second one, for what depends on the engine."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

NATIVE, VLLM = "native", "vllm"

_VLLM_SETTINGS: Mapping[str, object] = {
    "engine": VLLM,
    "dtype": "float32",  # as the native engine on processors without 16-bit matrix products
    "block_size": 32,  # the least on a CPU; vLLM takes 128 there, more than many a prompt here has tokens
    "vllm": {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28},
}
_VLLM_ENVIRONMENT: Mapping[str, str] = {"OMP_NUM_THREADS": "1"}  # as the native engine here

DEPENDING = (
    "test_adapters.py",
    "test_bad_input.py",
    "test_cancel.py",
    "test_gateway_chat.py",
    "test_gateway_completions.py",
    "test_gateway_errors.py",
    "test_gateway_models.py",
    "test_gateway_streams.py",
    "test_generate.py",
    "test_metrics.py",
    "test_queue.py",
    "test_shutdown.py",
    "test_streaming.py",
    "test_structured.py",
    "test_vllm_clients.py",
)
"""The files whose answers come from the engine. The others have doors, settings or programs for their subject, or what
happens before the engine."""

_NOT_ITS_OWN = "is nothing of the engine's, and would start a server of its own"
NOT_ON_VLLM: Mapping[str, str] = {
    "test_a_mistake_is_named[a strict tool of an unknown type]": "vLLM refuses strict before the schema is read",
    "test_who_has_left_does_not_hold_up_a_stop": _NOT_ITS_OWN,
    "test_vllm_model_hears_of_a_stop_in_the_middle_of_an_answer": _NOT_ITS_OWN,
    "test_requests_that_were_refused_do_not_keep_the_model": _NOT_ITS_OWN,
}
"""Test, by its name without parameters or with them -> why it is skipped there."""


def settings_on(engine: str, given: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Engine settings of a test, for that engine; None: those of the repository."""
    if engine == NATIVE:
        return given
    return {**_VLLM_SETTINGS, **{name: value for name, value in (given or {}).items() if name != "threads"}}


def environment_of(engine: str) -> Mapping[str, str]:
    """Environment variables of a server with that engine."""
    return _VLLM_ENVIRONMENT if engine == VLLM else {}


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With another engine than the native one, leaves what depends on the engine, and skips what it cannot do."""
    if config.getoption("--engine") == NATIVE:
        return
    kept = [item for item in items if item.path.name in DEPENDING]
    config.hook.pytest_deselected(items=[item for item in items if item.path.name not in DEPENDING])
    items[:] = kept
    for item in kept:
        why = NOT_ON_VLLM.get(item.name) or NOT_ON_VLLM.get(getattr(item, "originalname", item.name))
        if why:
            item.add_marker(pytest.mark.skip(reason=why))
