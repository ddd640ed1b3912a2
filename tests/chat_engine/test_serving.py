"""A model's settings become a parser and an engine that answer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import chat_engine
from chat_engine.config import EngineConfig, parse_config
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.engine import NativeEngine
from chat_engine.reading.request_parser import WireRequest
from chat_engine.serving import serve
from tests.chat_engine.builders import WAIT, Inbox

TINY = Path(__file__).parents[2] / "models" / "tiny-chat"


def settings(**more: object) -> EngineConfig:
    return parse_config({"model": str(TINY), "device": "cpu", "threads": 1, "max_step_tokens": 64, **more})


def test_the_native_engine_answers_what_the_parser_has_read() -> None:
    failures: list[int] = []
    serving = serve(settings(drain_seconds=7.0), on_failure=lambda: failures.append(1))
    try:
        assert isinstance(serving.engine, NativeEngine)
        assert serving.drain_seconds == 7.0
        inbox = Inbox()
        parameters = {"max_tokens": 5, "ignore_eos": True, "temperature": 0}
        request = serving.parser.parse(WireRequest(id="r", text_input=b"Once upon a time", parameters=parameters))
        serving.engine.submit(request, inbox)
        assert inbox.ended.wait(WAIT)
        assert inbox.output == 5
        assert inbox.text
    finally:
        serving.engine.close()
    assert failures == []


@pytest.mark.parametrize("value", ["vLLM", "Native", "", None, 1])
def test_another_engine_is_refused_by_name_with_what_is_allowed(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(engine=value)
    assert "engine: " in str(caught.value)
    assert "'native' or 'vllm'" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_engine_that_is_not_installed_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"engine: vllm is not installed .*; install vllm there"):
        serve(settings(engine="vllm", threads=None), on_failure=lambda: None)


def test_the_native_engine_imports_nothing_of_vllm() -> None:
    program = "import sys, chat_engine.serving; print(*[n for n in sys.modules if 'vllm' in n])"
    folder = Path(chat_engine.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_what_cannot_be_loaded_leaves_no_thread_behind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    before = threading.active_count()
    with pytest.raises(UnsupportedModelError, match="nonesuch"):
        serve(settings(model=str(tmp_path)), on_failure=lambda: None)
    assert threading.active_count() == before
