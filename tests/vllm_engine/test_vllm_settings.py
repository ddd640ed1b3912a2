"""Settings that the installed vLLM cannot take end the start with one sentence."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.serving import serve
from tests.vllm_engine.conftest import TINY, settings


def refusal(**more: object) -> str:
    before = threading.active_count()
    with pytest.raises(ConfigError) as caught:
        serve(settings(**{"engine": "vllm", **more}), on_failure=lambda: None)
    assert threading.active_count() == before
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_every_name_that_is_mapped_or_fixed_is_one_of_vllms() -> None:
    from vllm import AsyncEngineArgs

    from chat_engine.vllm import arguments

    known = {field.name for field in fields(AsyncEngineArgs)}
    ours = {*arguments._COMMON, *arguments._FIXED, "load_format", "kv_cache_memory_bytes", "structured_outputs_config"}
    assert ours <= known


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"vllm": {"tensor_parallel": 2}}, "vllm.tensor_parallel: "),
        ({"vllm": {"quantization": "nonesuch"}}, "quantization"),
        ({"vllm": {"tensor_parallel_size": "two"}}, "two"),
        ({"vllm": {"scheduling_policy": "lottery"}}, "policy"),
        ({"vllm": {"speculative_config": {"method": "telepathy"}}}, "method"),
        ({"max_model_len": 1 << 20}, "max_model_len"),
        ({"vllm": {"tensor_parallel_size": 4}}, "divisible"),
        ({"device": "cuda:0"}, "device: cuda:0"),
    ],
)
def test_what_vllm_does_not_take_is_refused(more: dict[str, object], part: str) -> None:
    assert part in refusal(**more)


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens"])
def test_tokens_that_a_checkpoint_rules_out_are_not_forgotten(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    written = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**written, name: [7]}))
    with pytest.raises(UnsupportedModelError, match=rf"generation_config.json: {name} \[7\] is not possible"):
        serve(settings(engine="vllm", model=str(folder)), on_failure=lambda: None)


ROPES = [
    ({"rope_type": "default"}, 2048),
    ({"rope_type": "linear", "factor": 4.0}, 8192),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 2048),
    ({"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 2048, "low_freq_factor": 1.0,
      "high_freq_factor": 4.0}, 2048),
    ({"rope_type": "dynamic", "factor": 4.0}, None),  # vLLM goes further, where its frequencies change with the length
]  # fmt: skip


@pytest.mark.parametrize(("rope", "alone"), ROPES, ids=lambda value: str(value)[:30])
def test_the_context_is_the_one_that_the_tokenizer_tells_of(
    tmp_path: Path, rope: dict[str, object], alone: int | None
) -> None:
    from vllm import AsyncEngineArgs

    from chat_engine.vllm.context import vllm_limits

    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    written = json.loads((folder / "config.json").read_text())
    parameters = {**written["rope_parameters"], **rope}
    (folder / "config.json").write_text(json.dumps({**written, "rope_parameters": parameters}))
    ours = vllm_limits(settings(engine="vllm", model=str(folder))).max_model_len
    arguments = {"model": str(folder), "dtype": "float32"}
    assert AsyncEngineArgs(**arguments, max_model_len=ours).create_model_config().max_model_len == ours
    if alone:
        assert AsyncEngineArgs(**arguments).create_model_config().max_model_len == ours == alone
