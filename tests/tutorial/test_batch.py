"""The batch of step 4 without Triton: whoever joins and leaves, each sequence has the logits that it has alone."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from local.options import DEFAULT_MODEL
from tools.tutorial import PAGE, blocks

FILE = Path("tutorial/step4/1/model.py")
SEQUENCES = 12


class Limit:
    """An answer that ends after so many tokens and is sent nowhere."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tokens: list[int] = []

    @property
    def ended(self) -> bool:
        return len(self.tokens) == self.limit

    def add(self, token: int) -> None:
        assert not self.ended, "a token after the last"
        self.tokens.append(token)


class Recorder:
    """The model; keeps the logits of the last pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.rows: list[torch.Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        self.rows = list(output.logits[:, -1])
        return output


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DEFAULT_MODEL)


@pytest.fixture
def step4(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    code = next(block.text for block in blocks(PAGE.read_text(encoding="utf-8")) if block.file == FILE)
    names: dict[str, Any] = {"__name__": "step4"}
    exec(compile(code, str(FILE), "exec"), names)
    return names


@torch.inference_mode()
def test_neighbours_change_nothing(step4: dict[str, Any], model: PreTrainedModel) -> None:
    draw, recorder = random.Random(1), Recorder(model)
    ids = torch.Generator().manual_seed(1)
    batch = step4["Batch"](recorder)
    waiting = [
        step4["Sequence"](
            torch.randint(6, 3000, (1, draw.randint(1, 40)), generator=ids), Limit(draw.choice([1, 2, 8, 30]))
        )
        for _ in range(SEQUENCES)
    ]
    everyone, seen = list(waiting), defaultdict(list)
    while waiting or batch.sequences:
        for _ in range(min(len(waiting), draw.randint(0, 2))):
            batch.join(newcomer := waiting.pop())
            seen[newcomer] += recorder.rows
        ran = list(batch.sequences)
        batch.step()
        for sequence, row in zip(ran, recorder.rows if ran else [], strict=True):
            seen[sequence].append(row)
        batch.leave()
    for sequence in everyone:
        assert sequence.answer.ended
        torch.testing.assert_close(torch.stack(seen[sequence]), alone(model, sequence), rtol=1e-3, atol=1e-3)


def alone(model: PreTrainedModel, sequence: Any) -> torch.Tensor:
    """Logits of its answer's tokens, in one pass over prompt and answer."""
    answer = torch.tensor([sequence.answer.tokens[:-1]], dtype=torch.long)
    return model(torch.cat([sequence.prompt, answer], dim=1)).logits[0, sequence.prompt.shape[1] - 1 :]
