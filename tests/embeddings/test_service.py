from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chat_engine.errors import ChatError, ContextLengthError, InvalidArgumentError, NotComputedError
from embedder.config import EmbedderConfig
from embedder.encoder import Vector
from embedder.parse import WireRequest
from embedder.service import Answer, EmbeddingService, unit

CAT, DOG = WireRequest(text=[b"the cat sat"]), WireRequest(text=[b"a dog ran on the mat", b"hello"])


@pytest.fixture
def service(bert: Path) -> Iterator[EmbeddingService]:
    made = EmbeddingService(EmbedderConfig(model=str(bert), device="cpu"))
    yield made
    made.close()


def answered(service: EmbeddingService, *requests: WireRequest | ChatError) -> list[Answer]:
    answers = service.answer(requests)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return answers


def test_vectors_are_float32_of_length_one(service: EmbeddingService) -> None:
    cat, dog = answered(service, CAT, DOG)
    assert (cat.embeddings.shape, dog.embeddings.shape) == ((1, 32), (2, 32))
    assert (cat.num_tokens, dog.num_tokens) == ([5], [8, 3])
    for answer in (cat, dog):
        assert answer.embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(answer.embeddings, axis=1), 1, atol=1e-6)


def test_an_answer_does_not_depend_on_the_batch(service: EmbeddingService) -> None:
    (alone,) = answered(service, CAT)
    among_others = answered(service, DOG, CAT, DOG, WireRequest(token_ids=[b"[5, 6, 7]"]))[1]
    np.testing.assert_allclose(among_others.embeddings, alone.embeddings, atol=2e-6)
    by_ids = answered(service, WireRequest(token_ids=[b"[2, 5, 6, 8, 3]"]))[0]
    np.testing.assert_allclose(by_ids.embeddings, alone.embeddings, atol=2e-6)


def test_dimensions_are_the_first_ones_with_length_one_again(service: EmbeddingService) -> None:
    whole, part = answered(service, CAT, WireRequest(text=CAT.text, dimensions=[8]))
    assert part.embeddings.shape == (1, 8)
    np.testing.assert_allclose(part.embeddings, unit(whole.embeddings[:, :8]), atol=2e-6)


def test_a_mistake_of_one_is_no_matter_for_the_others(service: EmbeddingService) -> None:
    bad = [
        WireRequest(),
        WireRequest(text=[b""]),
        WireRequest(text=[b"the cat", b"\xff"]),
        WireRequest(token_ids=[b"[99]"]),
        WireRequest(text=[b"a"], dimensions=[33]),
        WireRequest(text=[b"cat " * 100]),
    ]
    expected = answered(service, CAT, DOG)
    answers = service.answer([CAT, *bad, DOG, ChatError("could not be read")])
    kinds = [*[InvalidArgumentError] * (len(bad) - 1), ContextLengthError]
    assert [type(answer) for answer in answers[1:-2]] == kinds
    assert str(answers[-1]) == "could not be read"
    for found, wanted in zip((answers[0], answers[-2]), expected, strict=True):
        assert isinstance(found, Answer)
        np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=2e-6)


def test_a_surprise_while_parsing_is_that_requests_error(
    service: EmbeddingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = service._parser.parse

    def surprise(request: WireRequest) -> object:
        if request is CAT:
            raise MemoryError("secret")
        return parse(request)

    monkeypatch.setattr(service._parser, "parse", surprise)
    cat, dog = service.answer([CAT, DOG])
    assert isinstance(dog, Answer)
    assert str(cat) == "internal error: the request could not be parsed"


def test_a_row_that_the_model_fails_on_fails_its_request(
    service: EmbeddingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = service._encoder.encode

    def fails(rows: list) -> list[Vector | NotComputedError]:
        return [*encode(rows[:-1]), NotComputedError("internal error")]

    monkeypatch.setattr(service._encoder, "encode", fails)
    cat, dog = service.answer([CAT, DOG])
    assert isinstance(cat, Answer)
    assert isinstance(dog, NotComputedError)
    assert service.works()


def test_a_vector_of_zeros_stays_one() -> None:
    assert unit(np.zeros((1, 3), dtype=np.float32)).tolist() == [[0, 0, 0]]
