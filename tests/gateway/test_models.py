from __future__ import annotations

import time

import openai
import pytest
from starlette.testclient import TestClient

from tests.gateway.apps import app_for
from tests.gateway.fakes import FakeClient, model
from triton_chat.errors import ServerUnavailableError

ALIASES = {"gpt-4o-mini": "chat", "org/model-7b": "qwen", "nowhere": "gone"}


@pytest.fixture
def client(fake: FakeClient) -> TestClient:
    fake.catalogue += [model("qwen"), model("loading", ready=False), model("tokenizer", "tokenizer")]
    return TestClient(app_for(fake, aliases=ALIASES))


@pytest.fixture
def package(client: TestClient) -> openai.OpenAI:
    """The real package on the app."""
    return openai.OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)


def test_the_list(package: openai.OpenAI) -> None:
    models = list(package.models.list())
    assert [model.id for model in models] == ["chat", "embeddings", "gpt-4o-mini", "org/model-7b", "qwen"]
    assert {(model.object, model.owned_by) for model in models} == {("model", "triton")}
    assert {abs(model.created - time.time()) < 60 for model in models} == {True}


def test_the_shape_is_openais(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert set(listed) == {"object", "data"}
    assert listed["object"] == "list"
    for entry in listed["data"]:
        assert set(entry) == {"id", "object", "created", "owned_by"}
        assert client.get(f"/v1/models/{entry['id']}").json() == entry


@pytest.mark.parametrize("name", ["chat", "gpt-4o-mini", "org/model-7b"])
def test_one(package: openai.OpenAI, name: str) -> None:
    assert package.models.retrieve(name).id == name


@pytest.mark.parametrize("name", ["nope", "nowhere", "loading", "tokenizer", "chat_unary", "x" * 1000, "模型"])
def test_none(package: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        package.models.retrieve(name)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"
    assert len(raised.value.message) < 400


def test_triton_away(package: openai.OpenAI, fake: FakeClient) -> None:
    fake.failure = ServerUnavailableError("gone")
    with pytest.raises(openai.InternalServerError) as raised:
        package.models.list()
    assert raised.value.status_code == 503
    assert raised.value.response.headers["retry-after"] == "2"
