from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from chat_gateway.errors import ApiError
from chat_gateway.settings import GatewaySettings
from chat_gateway.upstream import triton as module
from chat_gateway.upstream.backlog import Backlogs
from chat_gateway.upstream.servers import Servers
from chat_gateway.upstream.triton import Kind, ServedModel, Upstream, _client
from tests.gateway.fakes import FakeClient, model
from triton_chat.channel import Target, parse_url
from triton_chat.errors import ServerUnavailableError
from triton_chat.types import ModelInfo

ALIASES = {"gpt-4o-mini": "chat", "nowhere": "gone", "ada": "embeddings"}


@pytest.fixture
def upstream(fake: FakeClient) -> Upstream:
    fake.catalogue = [
        model("chat"),
        model("chat_unary", "chat_unary"),
        model("embeddings", "embeddings"),
        model("tokenizer", "tokenizer"),
        model("mixtral", ready=False),
        model("new", "other", ready=False),
    ]
    return Upstream(GatewaySettings(aliases=ALIASES), fake)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the upstream's clock shows; the test moves them."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("chat", "chat", "chat"),
        ("gpt-4o-mini", "chat", "chat"),
        ("embeddings", "embeddings", "embeddings"),
        ("ada", "embeddings", "embeddings"),
    ],
)
async def test_names(upstream: Upstream, name: str, kind: Kind, target: str) -> None:
    assert await upstream.resolve(name, kind) == target
    assert await upstream.resolve(name, kind) == target  # now from what is known


@pytest.mark.parametrize(
    ("name", "kind", "status"),
    [
        ("nope", "chat", 404),
        ("", "chat", 404),
        ("nowhere", "chat", 404),
        ("embeddings", "chat", 404),
        ("gpt-4o-mini", "embeddings", 404),
        ("chat_unary", "chat", 404),
        ("tokenizer", "chat", 404),
        ("mixtral", "embeddings", 404),
        ("mixtral", "chat", 503),
        ("new", "chat", 503),
        ("new", "embeddings", 503),
    ],
)
async def test_names_that_cannot_be_served(upstream: Upstream, name: str, kind: Kind, status: int) -> None:
    for _ in range(2):
        with pytest.raises(ApiError) as raised:
            await upstream.resolve(name, kind)
        assert raised.value.status == status
        assert raised.value.code == {404: "model_not_found", 503: "unavailable"}[status]
        assert (raised.value.param == "model") == (status == 404)
        assert (raised.value.retry_after is not None) == (status == 503)


async def test_what_is_served(upstream: Upstream) -> None:
    assert await upstream.models() == [
        ServedModel("ada", "embeddings", "embeddings"),
        ServedModel("chat", "chat", "chat"),
        ServedModel("embeddings", "embeddings", "embeddings"),
        ServedModel("gpt-4o-mini", "chat", "chat"),
    ]


async def test_many_at_once_ask_once(upstream: Upstream, fake: FakeClient) -> None:
    await asyncio.gather(*(upstream.models() for _ in range(50)), *(upstream.resolve("chat") for _ in range(50)))
    assert fake.times_asked_for_models == 1


async def test_an_answer_holds_for_a_while(upstream: Upstream, fake: FakeClient, clock: list[float]) -> None:
    await upstream.models()
    fake.catalogue = [model("other-chat")]
    assert len(await upstream.models()) == 4
    clock[0] += 2.1  # as if nobody had looked meanwhile
    assert [served.id for served in await upstream.models()] == ["other-chat"]
    assert fake.times_asked_for_models == 2


async def test_a_model_that_was_ready_until_now_is_taken(
    upstream: Upstream, fake: FakeClient, clock: list[float]
) -> None:
    """The request may wait for another server."""
    await upstream.models()
    fake.catalogue = []
    clock[0] += 5
    assert await upstream.resolve("chat") == "chat"
    clock[0] += 2
    with pytest.raises(ApiError, match="no model"):
        await upstream.resolve("chat")


async def test_a_new_model_is_found_when_the_answer_is_old(
    upstream: Upstream, fake: FakeClient, clock: list[float]
) -> None:
    await upstream.models()
    fake.catalogue.append(model("new-chat"))
    with pytest.raises(ApiError):
        await upstream.resolve("new-chat")
    clock[0] += 2.1
    assert await upstream.resolve("new-chat") == "new-chat"


async def test_triton_away_and_back(upstream: Upstream, fake: FakeClient, clock: list[float]) -> None:
    fake.failure = ServerUnavailableError("cannot reach tritonserver at 10.1.2.3:8001")
    for ask in (upstream.models(), upstream.resolve("chat"), upstream.resolve("nope")):
        with pytest.raises(ApiError, match="cannot be reached") as raised:
            await ask
        assert raised.value.status == 503
        assert "10.1.2.3" not in raised.value.message
    fake.failure = None
    clock[0] += 0.3
    assert await upstream.resolve("chat") == "chat"


async def test_one_server_that_stops_does_not_speak_for_the_others() -> None:
    clients = {"a:1": FakeClient(), "b:1": FakeClient()}
    clients["a:1"].catalogue = [model("chat", ready=False), model("embeddings", "embeddings", ready=False)]
    clients["b:1"].catalogue = [model("chat"), model("embeddings", "embeddings", ready=False)]

    async def lookup() -> list[Target]:
        return [parse_url(url) for url in clients]

    servers = Servers(lookup, lambda target: clients[target.address])
    await servers.one_for("chat")
    while servers.num_up < 2:  # noqa: ASYNC110 - its looks need nothing but turns
        await asyncio.sleep(0)
    assert {name: found.ready for name, found in (await servers.models()).items()} == {
        "chat": True,
        "embeddings": False,
    }
    for _ in range(4):
        assert (await servers.one_for("chat")).client is clients["b:1"]
    with pytest.raises(ServerUnavailableError):
        await servers.one_for("embeddings")


async def test_a_chat_model_need_not_be_named_where_there_is_one(upstream: Upstream, fake: FakeClient) -> None:
    assert await upstream.resolve_chat(None) == "chat"  # which has an alias, too
    assert await upstream.resolve_chat("gpt-4o-mini") == "chat"
    with pytest.raises(ApiError, match="no model"):
        await upstream.resolve_chat("nope")


@pytest.mark.parametrize(
    ("catalogue", "status", "told"),
    [
        ([model("b"), model("a"), model("embeddings", "embeddings")], 400, "there are 2 chat models: a, b"),
        ([model("a", ready=False), model("embeddings", "embeddings")], 503, "no chat model that is ready"),
    ],
)
async def test_a_name_is_asked_for_where_there_is_a_choice(
    fake: FakeClient, catalogue: list[ModelInfo], status: int, told: str
) -> None:
    fake.catalogue = catalogue
    with pytest.raises(ApiError, match=told) as raised:
        await Upstream(GatewaySettings(), fake).resolve_chat(None)
    assert (raised.value.status, raised.value.param) == (status, "model" if status == 400 else None)


async def test_one_who_leaves_takes_the_answer_from_nobody(upstream: Upstream, fake: FakeClient) -> None:
    leaving, staying = (asyncio.create_task(upstream.models()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert len(await staying) == 4
    assert leaving.cancelled()
    assert fake.times_asked_for_models == 1


async def test_closing(upstream: Upstream, fake: FakeClient) -> None:
    await upstream.models()
    await upstream.close()
    assert fake.closed


async def test_the_client_of_the_settings() -> None:
    settings = GatewaySettings(triton_url="triton:9001", request_timeout=9, first_token_timeout=8, token_timeout=7)
    client = _client(parse_url(settings.triton_url), settings)
    assert client.target.address == "triton:9001"
    limits = client.timeouts
    assert (limits.total, limits.batch, limits.first_token, limits.idle) == (9, 9, 8, 7)


async def test_who_would_wait_for_too_long_is_refused(fake: FakeClient, clock: list[float]) -> None:
    upstream = Upstream(GatewaySettings(retry_after=3), fake)
    await upstream.models()
    server = await upstream.servers.one_for("chat")
    server.backlogs = Backlogs(5, lambda: clock[0])
    for _ in range(20):
        with server.backlogs.waiting("chat") as ticket:
            clock[0] += 1
            ticket.first_token()
    upstream.admit("chat")
    with ExitStack() as waiting:
        for _ in range(30):
            waiting.enter_context(server.backlogs.waiting("chat"))
        clock[0] += 3
        upstream.admit("another")
        with pytest.raises(ApiError, match="too many requests are waiting") as refused:
            upstream.admit("chat")
        assert (refused.value.status, refused.value.code) == (429, "overloaded")
        assert 20 <= (refused.value.retry_after or 0) <= 45
    upstream.admit("chat")
