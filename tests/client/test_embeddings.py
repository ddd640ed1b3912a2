from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.client.fake_embeddings import TOO_LONG, WIDTH, FakeEmbeddings, by_length, dimensions_of, vectors_response
from tests.client.fake_server import WAIT_S
from triton_chat import EmbeddingResult, embeddings, errors
from triton_chat.client import AsyncChatClient, ChatClient
from triton_chat.types import Timeouts


@pytest.fixture
def fake() -> Iterator[FakeEmbeddings]:
    server = FakeEmbeddings()
    yield server
    server.stop()


def test_vectors_and_tokens(client: ChatClient, fake: FakeEmbeddings) -> None:
    result = client.embed(["a", "four", "日本 😀"])
    assert isinstance(result, EmbeddingResult)
    assert (result.embeddings.shape, result.embeddings.dtype) == ((3, WIDTH), np.float32)
    np.testing.assert_array_equal(result.embeddings, by_length(["a", "four", "日本 😀"]))
    assert result.num_tokens == [1, 4, 4]
    received = fake.next_request()
    assert [(tensor.name, list(tensor.shape)) for tensor in received.message.inputs] == [("text", [3, 1])]


def test_the_vectors_may_be_written_to(client: ChatClient) -> None:
    result = client.embed(["a"])
    result.embeddings[0, 0] = 0


def test_what_is_sent(fake: FakeEmbeddings) -> None:
    with ChatClient(fake.url, headers={"Authorization": "Bearer x"}) as client:
        result = client.embed([[1, 2, 3], (4,)], dimensions=2, headers={"TraceParent": "t"})
    assert result.embeddings.shape == (2, 2)
    received = fake.next_request()
    assert received.tensor("token_ids") == ["[1,2,3]", "[4]"]
    assert dimensions_of(received) == 2
    assert received.metadata.items() >= {"authorization": "Bearer x", "traceparent": "t"}.items()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_many_texts_are_several_requests_of_similar_size_in_order(
    client: ChatClient, fake: FakeEmbeddings, count: int
) -> None:
    texts = ["x" * index for index in range(1, count + 1)]
    result = client.embed(texts)
    np.testing.assert_array_equal(result.embeddings, by_length(texts))
    assert result.num_tokens == list(range(1, count + 1))
    sizes = [received.message.inputs[0].shape[0] for received in fake.requests]
    assert len(sizes) == -(-count // embeddings.MAX_ROWS)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("place", [0, 70, 129])
def test_a_text_that_is_refused_is_named_by_its_place_in_the_list(client: ChatClient, place: int) -> None:
    texts = ["a"] * 130
    texts[place] = "bad"
    with pytest.raises(
        errors.ContextLengthError,
        match=f"^row {place}: text: {TOO_LONG}$",
    ) as caught:
        client.embed(texts)
    assert (caught.value.field, caught.value.row) == ("text", place)


@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        ([], "the list is empty"),
        ("one text", "a list of texts is needed"),
        (["a", [1]], "either all are texts"),
        ([[1], "a"], "either all are texts"),
        (["a", "\ud800"], "row 1: text"),
        ([[1], [float("nan")]], "row 1: token_ids"),
    ],
)
def test_what_cannot_be_sent(client: ChatClient, fake: FakeEmbeddings, inputs: embeddings.Inputs, part: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match=part):
        client.embed(inputs)
    assert fake.requests == []


@pytest.mark.parametrize("dimensions", [0, -1, 2**31])
def test_dimensions_that_no_model_has(client: ChatClient, dimensions: int) -> None:
    with pytest.raises(errors.InvalidRequestError, match=f"dimensions: .*{dimensions}"):
        client.embed(["a"], dimensions=dimensions)


@pytest.mark.parametrize("limit", [-2, 2**31, "5", True, 1.5])
def test_truncation_that_no_model_knows(client: ChatClient, limit: object) -> None:
    with pytest.raises(errors.InvalidRequestError, match="truncate_prompt_tokens: must be -1 or a number of tokens"):
        client.embed(["a"], truncate_prompt_tokens=limit)


def test_a_misspelt_option_is_an_error(client: ChatClient) -> None:
    with pytest.raises(TypeError, match="'dimesions'"):
        client.embed(["a"], dimesions=3)


def test_an_unknown_model(client: ChatClient) -> None:
    with pytest.raises(errors.ModelNotFoundError, match="nope"):
        client.embed(["a"], model="nope")


def test_a_time_limit_is_for_all_requests_together(fake: FakeEmbeddings, client: ChatClient) -> None:
    with pytest.raises(errors.StreamTimeoutError):
        client.embed([*["a"] * 100, "stall"], timeout=0.3)
    assert fake.requests[-1].cancelled.wait(WAIT_S)
    with ChatClient(fake.url, timeouts=Timeouts(batch=0.2)) as hasty, pytest.raises(errors.StreamTimeoutError):
        hasty.embed(["stall"])


def test_an_answer_of_another_kind_of_model() -> None:
    response = vectors_response(by_length(["a"]), [1])
    response.outputs[0].name = "logits"
    with pytest.raises(errors.EngineError, match=r"no output 'embedding': is this an embedding model\?"):
        embeddings.read(response)


def test_an_answer_that_does_not_add_up() -> None:
    with pytest.raises(errors.EngineError, match="cannot be read"):
        embeddings.read(vectors_response(by_length(["a", "b"])[:, :3], [1, 1, 1, 1]))


def test_a_model_that_changes_between_requests(fake: FakeEmbeddings, client: ChatClient) -> None:
    fake.vectors = lambda rows: by_length(rows)[:, : 1 + len(fake.requests)]
    with pytest.raises(errors.EngineError, match="was the model changed"):
        client.embed(["a"] * 65)


async def test_asyncio(fake: FakeEmbeddings) -> None:
    texts = ["x" * index for index in range(1, 101)]
    async with AsyncChatClient(fake.url) as client:
        result = await client.embed(texts, dimensions=2, headers={"traceparent": "t"})
        np.testing.assert_array_equal(result.embeddings, by_length(texts)[:, :2])
        assert result.num_tokens == list(range(1, 101))
        assert fake.next_request().metadata["traceparent"] == "t"
        with pytest.raises(errors.InvalidRequestError, match="row 99: "):
            await client.embed([*texts[:99], "bad"])
        with pytest.raises(errors.StreamTimeoutError):
            await client.embed(["stall"], timeout=0.1)
