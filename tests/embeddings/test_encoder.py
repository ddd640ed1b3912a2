"""Vectors against a plain reference: one text at a time, without padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel

from chat_engine.errors import UnsupportedModelError
from embedder.config import EmbedderConfig
from embedder.encoder import Encoder, length_groups
from embedder.errors import ForwardError
from tests.embeddings.checkpoints import VOCABULARY

ATOL = 2e-5
"""Of float32 vectors whose components are about 1."""

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda states: states.mean(0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}


def encoder(folder: Path, **settings: object) -> Encoder:
    return Encoder(EmbedderConfig(model=str(folder), device="cpu", **settings))


def texts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    dice = random.Random(seed)
    return [dice.choices(range(4, len(VOCABULARY)), k=dice.randint(1, longest)) for _ in range(count)]


def reference(folder: Path, pooling: str, rows: list[list[int]]) -> np.ndarray:
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        states = [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    return torch.stack([POOLINGS[pooling](state) for state in states]).numpy()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_the_plain_reference(any_checkpoint: Path, pooling: str) -> None:
    rows = texts(17)
    vectors = encoder(any_checkpoint, pooling=pooling).encode(rows)
    np.testing.assert_allclose(np.stack(vectors), reference(any_checkpoint, pooling, rows), atol=ATOL)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_does_not_depend_on_its_batch(any_checkpoint: Path, pooling: str) -> None:
    model, rows = encoder(any_checkpoint, pooling=pooling), texts(12)
    alone = [model.encode([row])[0] for row in rows]
    for order in (list(range(12)), list(reversed(range(12)))):
        together = model.encode([rows[index] for index in order])
        np.testing.assert_allclose(np.stack(together), np.stack([alone[index] for index in order]), atol=ATOL)


def test_the_bound_on_a_forward_pass_changes_nothing(bert: Path) -> None:
    rows = texts(20)
    whole = encoder(bert, max_batch_tokens=100_000).encode(rows)
    single = encoder(bert, max_batch_tokens=1).encode(rows)
    np.testing.assert_allclose(np.stack(whole), np.stack(single), atol=ATOL)


def test_few_forward_passes(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(bert, max_batch_tokens=64)
    passes: list[list[int]] = []
    forward = model._forward

    def counted(rows: list) -> np.ndarray:
        passes.append([len(row) for row in rows])
        return forward(rows)

    monkeypatch.setattr(model, "_forward", counted)
    model.encode([[5] * length for length in (2, 30, 3, 2, 31, 2, 10)])
    assert passes == [[31, 30], [10, 3, 2, 2, 2]]


def test_no_texts(bert: Path) -> None:
    assert encoder(bert).encode([]) == []


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("odd"), IndexError("no such id")])
def test_a_text_that_the_model_fails_on_takes_no_other_with_it(
    bert: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model, rows = encoder(bert), texts(9)
    expected = model.encode(rows)
    forward = model._forward

    def fails(some: list) -> np.ndarray:
        if rows[4] in some:
            raise error
        return forward(some)

    monkeypatch.setattr(model, "_forward", fails)
    results = model.encode(rows)
    assert isinstance(results[4], ForwardError)
    assert str(error) not in str(results[4])
    for index in {*range(9)} - {4}:
        np.testing.assert_allclose(results[index], expected[index], atol=ATOL)
    assert model.works()


def test_a_model_that_fails_always_does_not_work(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder(bert)

    def fails(some: list) -> np.ndarray:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(model, "_forward", fails)
    assert [type(result) for result in model.encode(texts(3))] == [ForwardError] * 3
    assert not model.works()


def test_a_vector_that_is_not_finite_is_an_error(bert: Path) -> None:
    model = encoder(bert)
    with torch.no_grad():
        model._model.get_input_embeddings().weight[7] = torch.inf
    good, bad = model.encode([[5, 6], [5, 7]])
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, ForwardError)


def test_a_model_that_ignores_the_mask_is_refused(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertModel

    forward = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda self, attention_mask, **rest: forward(self, **rest))
    with pytest.raises(UnsupportedModelError, match="bert: the vector of a text changes by"):
        encoder(bert)


def test_sixteen_bit_weights_give_float32_vectors(bert: Path) -> None:
    rows = texts(5)
    exact = np.stack(encoder(bert).encode(rows))
    rounded = np.stack(encoder(bert, dtype="bfloat16").encode(rows))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.2


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_groups_hold_every_text_once_and_keep_to_the_bound(lengths: list[int], bound: int) -> None:
    groups = length_groups(lengths, bound)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= bound
    longest_first = [lengths[index] for group in groups for index in group]
    assert longest_first == sorted(lengths, reverse=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gpu_agrees_with_the_cpu(any_checkpoint: Path, dtype: str) -> None:
    rows = texts(17)
    on_gpu = Encoder(EmbedderConfig(model=str(any_checkpoint), device="cuda", dtype=dtype)).encode(rows)
    atol = 1e-3 if dtype == "float32" else 0.2
    np.testing.assert_allclose(np.stack(on_gpu), reference(any_checkpoint, "mean", rows), atol=atol)
