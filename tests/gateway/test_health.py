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


def test_ready(gateway: TestClient) -> None:
    response = gateway.get("/health/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "models": ["chat"]})


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
    gateway: TestClient, fake: FakeClient, catalogue: list, failure: ServerUnavailableError | None, reason: str
) -> None:
    fake.catalogue, fake.failure = catalogue, failure
    response = gateway.get("/health/ready")
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
