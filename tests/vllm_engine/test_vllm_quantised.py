"""A checkpoint of 8 bits, in the form of compressed-tensors. The last test ends the engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from chat_engine.errors import UnsupportedModelError
from chat_engine.serving import Serving, serve
from tests.vllm_engine.asking import ask
from tests.vllm_engine.conftest import TINY, settings, vllm_settings
from tests.vllm_engine.started import Started

PROMPTS = ["Hello!", "What is the capital of France?", "Who are you?", "What is Triton?"]
QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip


LARGEST = 63
"""Of the whole numbers. Processors without VNNI add two products in 16 bits, which saturate from 65 on: with 127, a
product of matrices is 10 % off there. With 63 all processors find the same."""


def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each row of a linear layer as whole numbers and one scale."""
    made = dict(weights)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(1, keepdim=True) / LARGEST
            made[name] = (weight / scale).round().char()
            made[name.replace(".weight", ".weight_scale")] = scale
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised") / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl", "README*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISATION}))
    save_file(quantised(load_file(TINY / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def started(checkpoint: Path) -> Iterator[Started]:
    started = Started(vllm_settings(model=str(checkpoint), dtype="bfloat16", drain_seconds=1.0))
    yield started
    started.serving.engine.close()


def scores(serving: Serving, prompt: str) -> list[tuple[int | None, float]]:
    answer = ask(serving, prompt, temperature=0, max_tokens=1, prompt_logprobs=0)
    tokens = [token for event in answer.events for token in event.prompt_tokens]
    return [(token.rank, token.logprob) for token in tokens if token.logprob is not None]


def test_answers_are_near_those_of_the_whole_numbers(started: Started, native_serving: Serving) -> None:
    greedy = {"temperature": 0, "max_tokens": 40}
    pairs = [(ask(started.serving, p, **greedy).text, ask(native_serving, p, **greedy).text) for p in PROMPTS]
    assert sum(ours == theirs for ours, theirs in pairs) >= len(PROMPTS) - 1, pairs


def test_log_probabilities_are_near_those_of_the_whole_numbers(started: Started, native_serving: Serving) -> None:
    pairs = [
        (ours, theirs)
        for prompt in PROMPTS
        for (_, ours), (_, theirs) in zip(scores(started.serving, prompt), scores(native_serving, prompt), strict=True)
    ]
    distances = [abs(ours - theirs) for ours, theirs in pairs]
    # It is another checkpoint, and near: 0.10. With the scales of one matrix a quarter too large it is 0.19, with
    # those of one matrix a row too far 0.69, with one matrix transposed 3.4.
    assert 0 < sum(distances) / len(distances) < 0.15, pairs


def test_the_native_engine_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"quantised .compressed-tensors.*engine vllm"):
        serve(settings(model=str(checkpoint)), on_failure=lambda: None)


def test_a_core_that_is_killed_while_nothing_runs_ends_the_server(started: Started) -> None:
    errors = started.serving.engine.stats().finished
    os.kill(started.of("EngineCore").pid, signal.SIGKILL)
    started.ends_all([], errors)
