from __future__ import annotations

import asyncio
import time
from importlib import metadata

import httpx2
import pytest
from starlette.testclient import TestClient

from tests.gateway.apps import app_for, served
from tests.gateway.fakes import FakeClient, hangs, model
from triton_chat.errors import ServerUnavailableError

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}


def test_live_asks_nobody(gateway: TestClient, fake: FakeClient) -> None:
    fake.failure = ServerUnavailableError("gone")
    response = gateway.get("/health/live")
    assert (response.status_code, response.json()) == (200, {"status": "live"})
    assert fake.times_asked_for_models == 0


READY = ["/health/ready", "/health", "/ping"]


@pytest.mark.parametrize("path", READY)
def test_ready(gateway: TestClient, path: str) -> None:
    response = gateway.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ready", "models": ["chat"]})


@pytest.mark.parametrize(("method", "path"), [("HEAD", path) for path in READY] + [("POST", "/ping")])
def test_ready_for_those_who_ask_otherwise(fake: FakeClient, method: str, path: str) -> None:
    """Load balancers, and SageMaker; none of them has a key."""
    client = TestClient(app_for(fake, api_keys="secret"))
    assert client.request(method, path).status_code == 200
    client.app.state.draining = True
    assert client.request(method, path).status_code == 503


def test_heads_have_no_body(fake: FakeClient) -> None:
    with served(app_for(fake)) as url, httpx2.Client(base_url=url) as client:
        for path in ("/health", "/health/live", "/v1/models", "/v1/models/chat", "/version", "/tokenizer_info"):
            head = client.head(path)
            assert (head.status_code, head.content) == (200, b""), path
            assert head.headers["content-length"] == client.get(path).headers["content-length"]
        assert client.head("/metrics").status_code == 200
        assert client.head("/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("path", READY)
@pytest.mark.parametrize(
    ("catalogue", "failure", "reason"),
    [
        ([], None, "Triton has no chat model that is ready"),
        ([model("embeddings", "embeddings")], None, "Triton has no chat model that is ready"),
        ([model("chat", ready=False)], None, "Triton has no chat model that is ready"),
        ([model("chat")], ServerUnavailableError("10.1.2.3"), "the model server cannot be reached"),
    ],
)
def test_not_ready(
    gateway: TestClient,
    fake: FakeClient,
    path: str,
    catalogue: list,
    failure: ServerUnavailableError | None,
    reason: str,
) -> None:
    fake.catalogue, fake.failure = catalogue, failure
    response = gateway.get(path)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["message"].startswith(reason)


def test_draining(gateway: TestClient) -> None:
    gateway.app.state.draining = True
    assert gateway.get("/health/live").status_code == 200
    for response in (gateway.get("/health/ready"), gateway.post("/v1/chat/completions", json=CHAT)):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert "stopping" in response.json()["error"]["message"]


def test_version(gateway: TestClient) -> None:
    assert gateway.get("/version").json() == {"version": metadata.version("triton-chat")}


async def test_live_stays_fast_under_bad_input(fake: FakeClient) -> None:
    """Hostile bodies and waiting streams on all sides, and a Triton that does not answer."""
    fake.script = hangs()
    bodies = [b"[" * 2**20, b'{"a":' * 2**18, b"1" * 2**20, b'"' + b"\\u00e4" * 2**17 + b'"', b"{" + b" " * 2**20]
    with served(app_for(fake)) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            waiting = [asyncio.create_task(client.post("/v1/chat/completions", json=CHAT)) for _ in range(16)]

            async def attack(body: bytes) -> None:
                for _ in range(8):
                    response = await client.post("/v1/chat/completions", content=body, headers=JSON)
                    assert response.status_code == 400

            attacks = asyncio.gather(*(attack(body) for body in bodies))
            slowest = 0.0
            async with httpx2.AsyncClient(base_url=url) as probe:
                while not attacks.done():
                    began = time.perf_counter()
                    assert (await probe.get("/health/live")).status_code == 200
                    slowest = max(slowest, time.perf_counter() - began)
            await attacks
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    assert slowest < 1
