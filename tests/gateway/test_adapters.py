"""Adapters are models of their own at the gateway, and are asked of the servers that have them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace

import openai
import pytest
from starlette.testclient import TestClient

from chat_gateway.answers.generation import Generation, Order, Prompt
from chat_gateway.errors import ApiError
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream import servers as module
from chat_gateway.upstream.backlog import Backlogs
from chat_gateway.upstream.triton import Found, Upstream
from tests.client.fake_server import FakeTriton, fail
from tests.gateway.apps import app_for
from tests.gateway.callers import openai_over
from tests.gateway.fakes import MAX_MODEL_LEN, FakeClient, fails, model
from tests.gateway.test_servers import until
from tests.gateway.tritons import Name
from triton_chat.errors import ModelNotFoundError, ServerUnavailableError
from triton_chat.types import AdapterInfo, ModelInfo, SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]
SQL, POET = AdapterInfo("sql", "org/sql-lora"), AdapterInfo("org/poet", "poet-8")
ALIASES = {"gpt-4o-mini": "chat", "gpt-sql": "sql"}


def adapted(name: str, *adapters: AdapterInfo, ready: bool = True) -> ModelInfo:
    return replace(model(name, ready=ready), adapters=adapters)


@pytest.fixture
def fake(fake: FakeClient) -> FakeClient:
    fake.catalogue = [
        adapted("chat", SQL, POET),
        model("embeddings", "embeddings"),
        model("tokenizer", "tokenizer"),
        adapted("loading", AdapterInfo("late", "late"), ready=False),
    ]
    return fake


@pytest.fixture
def client(fake: FakeClient) -> Iterator[TestClient]:
    with TestClient(app_for(fake, aliases=ALIASES)) as opened:
        yield opened


@pytest.fixture
def api(client: TestClient) -> openai.OpenAI:
    return openai_over(client)


class TestTheList:
    def test_each_is_a_model_with_its_origin_and_its_base(self, client: TestClient) -> None:
        listed = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        assert list(listed) == ["chat", "embeddings", "gpt-4o-mini", "gpt-sql", "org/poet", "sql"]
        told = {name: (entry["root"], entry["parent"], entry["max_model_len"]) for name, entry in listed.items()}
        assert told["chat"] == told["gpt-4o-mini"] == ("org/chat-1B", None, MAX_MODEL_LEN)
        assert told["sql"] == told["gpt-sql"] == ("org/sql-lora", "chat", MAX_MODEL_LEN)
        assert told["org/poet"] == ("poet-8", "chat", MAX_MODEL_LEN)
        for name, entry in listed.items():
            assert client.get(f"/v1/models/{name}").json() == entry

    def test_one_of_a_model_that_is_not_ready_is_not_there_yet(self, client: TestClient) -> None:
        assert client.get("/v1/models/late").status_code == 404

    def test_the_health_page_has_them(self, client: TestClient) -> None:
        assert "sql" in client.get("/health/ready").json()["models"]


class TestRequests:
    @pytest.mark.parametrize(("name", "adapter"), [("sql", "sql"), ("org/poet", "org/poet"), ("gpt-sql", "sql")])
    def test_chat(self, api: openai.OpenAI, fake: FakeClient, name: str, adapter: str) -> None:
        answer = api.chat.completions.create(model=name, messages=MESSAGES)
        assert answer.model == name
        assert (fake.calls[0].model, fake.calls[0].request.adapter) == ("chat", adapter)

    def test_the_model_itself(self, api: openai.OpenAI, fake: FakeClient) -> None:
        api.chat.completions.create(model="chat", messages=MESSAGES)
        api.completions.create(model="gpt-4o-mini", prompt="hi")
        assert [(call.model, call.request.adapter) for call in fake.calls] == [("chat", None)] * 2

    def test_streams_and_completions(self, api: openai.OpenAI, fake: FakeClient) -> None:
        chunks = list(api.chat.completions.create(model="sql", messages=MESSAGES, stream=True, n=2))
        assert {chunk.model for chunk in chunks} == {"sql"}
        assert api.completions.create(model="sql", prompt=["a", "b"]).model == "sql"
        assert [(call.model, call.request.adapter) for call in fake.calls] == [("chat", "sql")] * 4

    def test_effort_is_for_the_template_of_the_base(self, api: openai.OpenAI, fake: FakeClient) -> None:
        fake.template_kwargs, fake.template = ("enable_thinking",), "{{ enable_thinking }}"
        api.chat.completions.create(model="sql", messages=MESSAGES, reasoning_effort="low")
        assert {arguments["model"] for _, arguments in fake.others} == {"chat"}
        assert fake.calls[0].request.chat_template_kwargs == {"enable_thinking": True}

    def test_tokens_are_those_of_the_base(self, client: TestClient, fake: FakeClient) -> None:
        assert client.post("/tokenize", json={"model": "sql", "prompt": "ab"}).json()["count"] == 2
        assert client.post("/detokenize", json={"model": "sql", "tokens": [97]}).json() == {"prompt": "a"}
        assert client.get("/tokenizer_info", params={"model": "sql"}).status_code == 200
        assert client.post("/tokenize", json={"prompt": "ab"}).status_code == 200  # there is one chat model
        assert {arguments["model"] for _, arguments in fake.others} == {"chat"}

    @pytest.mark.parametrize(("name", "status"), [("SQL", 404), ("sql/", 404), ("late", 503)])
    def test_what_is_not_there(self, client: TestClient, name: str, status: int) -> None:
        refused = client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES})
        assert refused.status_code == status
        code = refused.json()["error"]["code"]
        assert code == {404: "model_not_found", 503: "unavailable"}[status]
        assert name in refused.json()["error"]["message"]

    def test_it_makes_no_embeddings(self, client: TestClient) -> None:
        refused = client.post("/v1/embeddings", json={"model": "sql", "input": "a"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")

    def test_one_that_the_server_does_not_have_any_more(self, client: TestClient, fake: FakeClient) -> None:
        fake.script = fails(ModelNotFoundError("there is no adapter 'sql'; there are a, b", field="adapter"))
        refused = client.post("/v1/chat/completions", json={"model": "sql", "messages": MESSAGES})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert refused.json()["error"]["param"] == "model"
        assert "there are a, b" in refused.json()["error"]["message"]


class TestNamesThatClash:
    @staticmethod
    async def found(fake: FakeClient, name: str, *catalogue: ModelInfo) -> Found:
        fake.catalogue = list(catalogue)
        upstream = Upstream(GatewaySettings(), fake)
        try:
            first = await upstream.find(name)
            assert await upstream.find(name) == first  # now from what is known
            models = {
                served.id: Found(served.target, served.adapter and served.adapter.name)
                for served in await upstream.models()
            }
            assert models[name] == first
            return first
        finally:
            await upstream.close()

    async def test_a_model_of_triton_comes_first(self, fake: FakeClient, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "chat_gateway"):
            assert await self.found(fake, "sql", adapted("chat", SQL), model("sql")) == Found("sql")
        assert [record.message for record in caplog.records] == [
            "the adapter sql of chat cannot be named: another model has its name"
        ]

    async def test_one_that_is_not_ready_does_too(self, fake: FakeClient) -> None:
        with pytest.raises(ApiError) as caught:
            await self.found(fake, "sql", adapted("chat", SQL), model("sql", ready=False))
        assert caught.value.status == 503

    async def test_of_two_models_with_it_the_first_by_name(self, fake: FakeClient) -> None:
        assert await self.found(fake, "sql", adapted("zeta", SQL), adapted("beta", SQL)) == Found("beta", "sql")


@pytest.fixture
def two() -> Iterator[tuple[FakeTriton, FakeTriton]]:
    """Only the second has the adapter."""
    tritons = FakeTriton(), FakeTriton()
    for triton in tritons:
        triton.states = {"chat": "READY", "tokenizer": "READY"}
    tritons[1].adapters = {"chat": {"sql": "org/sql-lora"}}
    yield tritons
    for triton in tritons:
        triton.stop()


@pytest.fixture
async def upstream(two: tuple[FakeTriton, FakeTriton]) -> AsyncIterator[Upstream]:
    opened = Upstream(GatewaySettings(), lookup=Name(*(triton.url for triton in two)))
    await opened.models()
    await until(lambda: opened.servers.num_up == 2)
    yield opened
    await opened.close()


async def answer(upstream: Upstream, name: str) -> str:
    """As a route gets it."""
    found = await upstream.find(name)
    order = Order(model=found.model, adapter=found.adapter, prompts=[Prompt(text="hello")], sampling=SamplingParams())
    (result,) = await Generation(upstream, order).results()
    return result.text


class TestSeveralServers:
    async def test_those_that_have_it_get_its_requests(
        self, upstream: Upstream, two: tuple[FakeTriton, FakeTriton]
    ) -> None:
        without, has = two
        assert [await answer(upstream, "sql") for _ in range(8)] == ["hello"] * 8
        assert (len(without.requests), len(has.requests)) == (0, 8)
        assert {tuple(request.tensor("adapter")) for request in has.requests} == {("sql",)}
        assert [await answer(upstream, "chat") for _ in range(8)] == ["hello"] * 8
        assert without.requests
        assert "sql" in [served.id for served in await upstream.models()]

    async def test_it_waits_for_one_that_has_it_and_takes_no_other(
        self, upstream: Upstream, two: tuple[FakeTriton, FakeTriton], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        without, has = two
        assert await answer(upstream, "sql") == "hello"
        monkeypatch.setattr(module, "PATIENCE_S", 0.3)
        has.reply = lambda _: iter([fail("Server is stopping")])
        has.stopping = True
        with pytest.raises((ApiError, ServerUnavailableError)):
            await answer(upstream, "sql")
        assert not without.requests
        assert await answer(upstream, "chat") == "hello"

    async def test_a_model_and_its_adapters_wait_in_one_queue(self, upstream: Upstream, two: object) -> None:
        now = [1000.0]
        server = await upstream.servers.one_for("chat", adapter="sql")
        server.backlogs = Backlogs(5, lambda: now[0])
        for _ in range(20):
            with server.backlogs.waiting("chat") as ticket:
                now[0] += 1
                ticket.first_token()
        with ExitStack() as waiting:
            for _ in range(30):
                waiting.enter_context(server.backlogs.waiting("chat"))
            now[0] += 3
            upstream.admit("chat")  # the other server has no queue
            with pytest.raises(ApiError, match="too many requests are waiting"):
                upstream.admit("chat", "sql")
