from __future__ import annotations

import asyncio
import time

import openai
import pytest
from starlette.testclient import TestClient

from chat_gateway.upstream import details
from tests.gateway.apps import app_for
from tests.gateway.fakes import MAX_MODEL_LEN, FakeClient, model
from triton_chat.errors import EngineError, ServerUnavailableError
from triton_chat.types import TokenizerInfo

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
        assert set(entry) == {"id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission"}
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


def test_what_vllm_adds(client: TestClient) -> None:
    listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
    roots = {name: (entry["root"], entry["max_model_len"]) for name, entry in listed.items()}
    chat, qwen = ("org/chat-1B", MAX_MODEL_LEN), ("org/qwen-1B", MAX_MODEL_LEN)
    none = (None, None)
    assert roots == {"chat": chat, "gpt-4o-mini": chat, "qwen": qwen, "org/model-7b": qwen, "embeddings": none}
    assert {(entry["parent"], len(entry["permission"])) for entry in listed.values()} == {(None, 0)}


def test_the_tokenizer_is_asked_once(client: TestClient, fake: FakeClient) -> None:
    with client:
        for _ in range(3):
            client.get("/v1/models")
    assert sorted(arguments["model"] for _, arguments in fake.others) == ["chat", "qwen"]


def test_a_tokenizer_that_fails_breaks_nothing(fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(details, "_PATIENCE_S", 0.05)
    failing = EngineError("the tokenizer failed: internal error")
    release = asyncio.Event()

    async def fails_or_hangs(model: str, **_: object) -> TokenizerInfo:
        if model == "qwen":
            await release.wait()
        raise failing

    fake.tokenizer_info = fails_or_hangs  # type: ignore[assignment]
    fake.catalogue += [model("qwen")]
    with TestClient(app_for(fake)) as client:
        for entry in client.get("/v1/models").json()["data"]:
            assert (entry["root"], entry["max_model_len"]) == (None, None)
        assert client.get("/health").status_code == 200


class TestDetails:
    INFO = TokenizerInfo("org/chat", 100, {})

    async def test_many_at_once_are_one_question(self) -> None:
        asked = []

        async def ask(name: str) -> TokenizerInfo:
            asked.append(name)
            await asyncio.sleep(0)
            return self.INFO

        known = details.Details(ask)
        assert await asyncio.gather(*(known.of("chat") for _ in range(9))) == [self.INFO] * 9
        assert asked == ["chat"]

    async def test_what_was_known_stays_where_the_tokenizer_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(details, "_KEPT_S", 0.0)
        answers = iter([self.INFO, EngineError("no"), self.INFO])

        async def ask(_: str) -> TokenizerInfo:
            if isinstance(answer := next(answers), EngineError):
                raise answer
            return answer

        known = details.Details(ask)
        assert [await known.of("chat") for _ in range(4)] == [self.INFO] * 4
        assert next(answers) is self.INFO  # a failure is not repeated at once

    async def test_who_needs_it_waits_past_the_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(details, "_PATIENCE_S", 0.0)
        release = asyncio.Event()

        async def ask(_: str) -> TokenizerInfo:
            await release.wait()
            return self.INFO

        known = details.Details(ask)
        waiting = asyncio.create_task(known.needed("chat"))
        assert await known.of("chat") is None
        assert not waiting.done()
        release.set()
        assert await waiting == self.INFO

    async def test_who_needs_it_hears_of_the_failure_and_may_ask_again_at_once(self) -> None:
        answers = iter([EngineError("no"), self.INFO])

        async def ask(_: str) -> TokenizerInfo:
            if isinstance(answer := next(answers), EngineError):
                raise answer
            return answer

        known = details.Details(ask)
        with pytest.raises(EngineError):
            await known.needed("chat")
        assert await known.of("chat") is None
        assert await known.needed("chat") == self.INFO

    async def test_who_needs_it_takes_what_was_known_where_the_tokenizer_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(details, "_KEPT_S", 0.0)
        answers = iter([self.INFO, EngineError("no")])

        async def ask(_: str) -> TokenizerInfo:
            if isinstance(answer := next(answers), EngineError):
                raise answer
            return answer

        known = details.Details(ask)
        assert [await known.needed("chat") for _ in range(2)] == [self.INFO] * 2

    async def test_a_late_answer_is_there_the_next_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(details, "_PATIENCE_S", 0.01)
        release = asyncio.Event()

        async def ask(_: str) -> TokenizerInfo:
            await release.wait()
            return self.INFO

        known = details.Details(ask)
        assert await known.of("chat") is None
        release.set()
        await asyncio.sleep(0)
        assert await known.of("chat") == self.INFO


def test_triton_away(package: openai.OpenAI, fake: FakeClient) -> None:
    fake.failure = ServerUnavailableError("gone")
    with pytest.raises(openai.InternalServerError) as raised:
        package.models.list()
    assert raised.value.status_code == 503
    assert raised.value.response.headers["retry-after"] == "2"
