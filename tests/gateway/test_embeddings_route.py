from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from starlette.testclient import TestClient

from chat_gateway.routes.embeddings import embedding
from tests.gateway.apps import app_for
from tests.gateway.callers import Caller, openai_over
from tests.gateway.fakes import FakeClient
from triton_chat import errors
from triton_chat.embeddings import EmbeddingResult, Inputs

PATH = "/v1/embeddings"


class Embedder(FakeClient):
    """The vector of the input `i` begins with `i`; an input has as many tokens as it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Inputs, str, int | None]] = []
        self.cancelled = False
        self.hangs = False
        self.goes_away = 0
        """So many times, before it answers."""

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str = "embeddings",
        dimensions: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> EmbeddingResult:
        self.asked.append((inputs, model, dimensions))
        self._raise()
        if self.goes_away:
            self.goes_away -= 1
            raise errors.ServerUnavailableError("gone")
        if self.hangs:
            await self._hang()
        vectors = np.full((len(inputs), dimensions or 3), 0.1, dtype=np.float32)
        vectors[:, 0] = range(len(inputs))
        return EmbeddingResult(vectors, [len(entry) for entry in inputs])

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


@pytest.fixture
def fake() -> Embedder:
    return Embedder()


@pytest.fixture
def api(gateway: TestClient) -> OpenAI:
    return openai_over(gateway)


@pytest.mark.parametrize(
    ("given_input", "asked"),
    [("月亮", ["月亮"]), (["a", "bc"], ["a", "bc"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])],
)
@pytest.mark.parametrize("encoding", ["float", "base64", openai.NOT_GIVEN])
def test_the_answer(api: OpenAI, fake: Embedder, given_input: Any, asked: Any, encoding: Any) -> None:
    """The package asks for base64 where nothing is said, and decodes it."""
    answer = api.embeddings.create(model="embeddings", input=given_input, encoding_format=encoding)
    assert fake.asked == [(asked, "embeddings", None)]
    assert (answer.object, answer.model) == ("list", "embeddings")
    assert [(entry.object, entry.index) for entry in answer.data] == [("embedding", i) for i in range(len(asked))]
    vectors = [entry.embedding for entry in answer.data]
    if encoding == "base64":
        vectors = [np.frombuffer(base64.b64decode(str(vector)), "<f4").tolist() for vector in vectors]
    expected = [[float(index), np.float32(0.1), np.float32(0.1)] for index in range(len(asked))]
    np.testing.assert_array_equal(np.array(vectors, dtype=np.float32), np.array(expected, dtype=np.float32))
    tokens = sum(map(len, asked))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_floats_are_the_default_and_base64_is_text(gateway: TestClient) -> None:
    body = {"model": "embeddings", "input": "a"}
    assert gateway.post(PATH, json=body).json()["data"][0]["embedding"] == [0.0, *[float(np.float32(0.1))] * 2]
    assert isinstance(gateway.post(PATH, json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"], str)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_both_encodings_are_exact(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    encoded = str(embedding(0, vector, "base64").embedding)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), vector)
    np.testing.assert_array_equal(np.array(embedding(0, vector, "float").embedding, dtype=np.float32), vector)


def test_dimensions(api: OpenAI, fake: Embedder) -> None:
    answer = api.embeddings.create(model="embeddings", input="a", dimensions=2, user="me")
    assert (len(answer.data[0].embedding), fake.asked[0][2]) == (2, 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * 257}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"truncate": True}, "truncate"),
    ],
)
def test_nothing_bad_reaches_the_model(gateway: TestClient, fake: Embedder, fields: dict[str, Any], param: str) -> None:
    response = gateway.post(PATH, json={"model": "embeddings", "input": "a"} | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert fake.asked == []


def test_a_chat_model_is_none_for_this(api: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        api.embeddings.create(model="chat", input="a")


@pytest.mark.parametrize(
    ("told", "tells"),
    [
        ("row 70: text: 600 tokens; at most 512", "input.70: 600 tokens; at most 512"),
        ("row 0: token_ids: -1 is no token", "input.0: -1 is no token"),
        ("row 1: 600 tokens given; the context holds 512", "input.1: 600 tokens given; the context holds 512"),
        ("text: empty", "input: empty"),
        ("dimensions: 900 given; at most 128", "dimensions: 900 given; at most 128"),
    ],
)
def test_the_models_rows_are_inputs(api: OpenAI, fake: Embedder, told: str, tells: str) -> None:
    api.models.list()  # so that the failure is the embedding's
    fake.failure = errors.InvalidRequestError(told)
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(model="embeddings", input="a")
    assert caught.value.body["message"] == tells  # type: ignore[index]


def test_a_server_that_goes_is_followed_by_another(gateway: TestClient, fake: Embedder) -> None:
    for times, status in ((1, 200), (2, 503)):
        fake.goes_away = times
        assert gateway.post(PATH, json={"model": "embeddings", "input": "a"}).status_code == status
    assert len(fake.asked) == 4


async def test_leaving_cancels_the_work(fake: Embedder) -> None:
    fake.hangs = True
    async with Caller(app_for(fake), PATH, {"model": "embeddings", "input": "a"}) as caller:
        await caller.reaches(lambda: fake.asked)
    assert fake.cancelled
    assert caller.status == 499
