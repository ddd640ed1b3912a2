"""Nothing is compiled for a caller: that takes seconds, in which all others wait and the engine looks stuck."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_engine.config import parse_config
from chat_engine.serving import serve
from tests.vllm_engine.conftest import vllm_settings
from tests.vllm_engine.test_vllm_engine import ask

ASKED: tuple[dict[str, object], ...] = (
    {"temperature": 0, "logprobs": 3, "prompt_logprobs": 1},
    {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 0, "logit_bias": {"300": 2}, "min_tokens": 3},
    {"temperature": 0, "structured_outputs": {"regex": "[ab]{8}"}},
    {"temperature": 1, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "seed": 1},
    {"temperature": 1, "top_p": 0.8},
    {"temperature": 1},
)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_a_caller_makes_nothing_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    settings = vllm_settings().model_dump()
    config = parse_config({**settings, "vllm": {**settings["vllm"], "enforce_eager": eager}})
    serving = serve(config, on_failure=lambda: None)
    try:
        before = files(tmp_path)
        assert all(ask(serving, "Hello!", max_tokens=8, **asked).last.error is None for asked in ASKED)
        assert files(tmp_path) == before
        assert bool([path for path in before if path.suffix == ".cpp"]) != eager
    finally:
        serving.engine.close()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix in (".cpp", ".so", ".py")}
