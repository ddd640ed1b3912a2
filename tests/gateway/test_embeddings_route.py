from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from starlette.testclient import TestClient
from typing_extensions import Unpack

from chat_gateway.routes.embeddings import unhurried, written
from chat_gateway.schemas.embeddings import EmbeddingResponse
from tests.gateway.apps import app_for
from tests.gateway.callers import Caller, openai_over
from tests.gateway.fakes import FakeClient
from triton_chat import errors
from triton_chat.embeddings import EmbeddingResult, EmbedOptions, Inputs
from triton_chat.errors import InvalidRequestError as Refusal

PATH = "/v1/embeddings"


class Embedder(FakeClient):
    """The vector of the input `i` begins with `i`; an input has as many tokens as it is long."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Inputs, str, int | None]] = []
        self.options: list[EmbedOptions] = []
        self.width = 3
        self.cancelled = False
        self.hangs = False
        self.goes_away = 0
        """So many times, before it answers."""

    async def embed(
        self,
        inputs: Inputs,
        *,
        model: str = "embeddings",
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbeddingResult:
        dimensions = options.get("dimensions")
        self.asked.append((inputs, model, dimensions))
        self.options.append(options)
        self._raise()
        if self.goes_away:
            self.goes_away -= 1
            raise errors.ServerUnavailableError("gone")
        if self.hangs:
            await self._hang()
        vectors = np.full((len(inputs), dimensions or self.width), 0.1, dtype=np.float32)
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
    vector = np.array([values], dtype=np.float32)

    def encoded(encoding: Literal["float", "base64"]) -> Any:
        return answer_of(EmbeddingResult(vector, [1]), encoding)["data"][0]["embedding"]

    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded("base64")), "<f4"), vector[0])
    np.testing.assert_array_equal(np.array(encoded("float"), dtype=np.float32), vector[0])


def answer_of(result: EmbeddingResult, encoding: Literal["float", "base64"] | None = None) -> Any:
    return json.loads(b"".join(written(result, "m", encoding)))


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("rows", [1, 2, 500])
def test_the_pieces_are_openais_answer(rows: int, encoding: Literal["float", "base64"]) -> None:
    result = EmbeddingResult(np.random.default_rng(0).random((rows, 200), dtype=np.float32), list(range(rows)))
    pieces = list(written(result, '名"字', encoding))
    answer = EmbeddingResponse.model_validate_json(b"".join(pieces))
    assert answer.model_dump(exclude_unset=True) == json.loads(b"".join(pieces))
    assert (answer.model, answer.object, len(answer.data)) == ('名"字', "list", rows)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(range(rows))
    assert max(map(len, pieces)) < 80_000
    assert (len(pieces) > 1) == (rows == 500)


@pytest.mark.parametrize("count", [1000, 2048])
@pytest.mark.parametrize("entry", ["text", [5, 6, 7]])
def test_as_many_as_openai_takes(api: OpenAI, fake: Embedder, count: int, entry: Any) -> None:
    answer = api.embeddings.create(model="embeddings", input=[entry] * count)
    assert [(data.index, data.embedding[0]) for data in answer.data] == [(i, float(i)) for i in range(count)]
    assert len(fake.asked) == 1


def test_one_more_is_refused_with_the_limit(api: OpenAI, fake: Embedder) -> None:
    with pytest.raises(openai.BadRequestError, match=r"input: 2049 texts given; at most 2048 are allowed"):
        api.embeddings.create(model="embeddings", input=["a"] * 2049)
    assert fake.asked == []


async def test_others_have_a_turn_after_each_piece_of_a_long_answer() -> None:
    result = EmbeddingResult(np.zeros((2048, 256), dtype=np.float32), [1] * 2048)
    turns, done = 0, False

    async def other() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(other())
    pieces = written(result, "m", None)
    sizes = [len(piece) async for piece in unhurried(next(pieces), next(pieces), pieces)]
    done = True
    await others
    assert max(sizes) < 80_000
    assert turns >= len(sizes) - 2 > 10


def test_a_long_answer_reaches_its_caller(gateway: TestClient, fake: Embedder) -> None:
    fake.width = 256
    response = gateway.post(PATH, json={"model": "embeddings", "input": ["a"] * 2048})
    assert [entry["index"] for entry in response.json()["data"]] == list(range(2048))
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (None, None)),
        ({"truncate_prompt_tokens": None, "truncation_side": None}, (None, None)),
        ({"truncate_prompt_tokens": -1}, (-1, None)),
        ({"truncate_prompt_tokens": 8.0, "truncation_side": "left"}, (8, "left")),
    ],
)
def test_truncation_is_the_models(gateway: TestClient, fake: Embedder, fields: dict[str, Any], expected: Any) -> None:
    assert gateway.post(PATH, json={"model": "embeddings", "input": "a"} | fields).status_code == 200
    (options,) = fake.options
    assert (options.get("truncate_prompt_tokens"), options.get("truncation_side")) == expected


def test_dimensions(api: OpenAI, fake: Embedder) -> None:
    answer = api.embeddings.create(model="embeddings", input="a", dimensions=2, user="me")
    assert (len(answer.data[0].embedding), fake.asked[0][2]) == (2, 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"dimensions": "5"}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"truncate": True}, "truncate"),
        ({"truncate_prompt_tokens": 1.5}, "truncate_prompt_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
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
    ("given_input", "told", "param"),
    [
        (["a"] * 99, Refusal("600 tokens; at most 512", field="text", row=70), "input[70]"),
        (["a"] * 99, Refusal("no", row=70), "input[70]"),
        ([[5], [6]], Refusal("-1 is no token", field="token_ids", row=0), "input[0]"),
        (["a"], Refusal("empty", field="text"), "input[0]"),
        ("a", Refusal("empty", field="text"), "input"),
        ([5, 6], Refusal("no", field="token_ids"), "input"),
        ("a", Refusal("no", row=0), "input"),
        ("a", Refusal("900 given; at most 128", field="dimensions"), "dimensions"),
        ("a", Refusal("no", field="truncate_prompt_tokens"), "truncate_prompt_tokens"),
        ("a", Refusal("exactly one of text and token_ids is required, both given"), None),
    ],
)
def test_the_models_rows_are_inputs(
    gateway: TestClient, fake: Embedder, given_input: Any, told: Refusal, param: str | None
) -> None:
    gateway.get("/v1/models")  # so that the failure is the embedding's
    fake.failure = told
    response = gateway.post(PATH, json={"model": "embeddings", "input": given_input})
    error = response.json()["error"]
    message = f"{param}: {told.sentence}" if param else told.sentence
    assert (error["param"], error["message"], error["code"]) == (param, message, "invalid_value")


def test_a_text_that_is_too_long(api: OpenAI, fake: Embedder) -> None:
    api.models.list()
    words = "600 tokens given; this model's maximum context length is 512 tokens"
    fake.failure = errors.ContextLengthError(words, field="text", row=1)
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(model="embeddings", input=["a", "b"])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[1]")
    assert caught.value.body["message"] == f"input[1]: {words}"  # type: ignore[index]


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
