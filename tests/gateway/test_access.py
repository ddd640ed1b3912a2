from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from chat_gateway.logs import JsonLines
from tests.gateway.apps import app_for, served, wait_until
from tests.gateway.fakes import FakeClient, fails, hangs
from triton_chat.errors import EngineError

KEY, PROMPT, QUERY = "sesame-key", "the-secret-prompt", "the-secret-query"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": PROMPT}]}


class Lines:
    """What the log holds, line by line, as the command writes it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["logger"] == "chat_gateway.http.access"]

    def only(self) -> dict[str, Any]:
        (line,) = self.requests()
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    found = Lines()
    handler = logging.StreamHandler(found.stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("chat_gateway")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield found
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.parametrize("given", ["a", "trace-1/2:3", "~" * 128])
def test_the_callers_request_id_is_kept(gateway: TestClient, given: str) -> None:
    assert gateway.get("/version", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "two words", "~" * 129, "a]b", "ümlaut".encode(), b"tab\there"])
def test_another_gets_a_fresh_one(gateway: TestClient, given: str | bytes | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    ids = {gateway.get("/version", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(fresh) == 32 and fresh.isalnum() for fresh in ids)


def test_the_id_reaches_the_engine(gateway: TestClient, fake: FakeClient) -> None:
    gateway.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "r-7"})
    assert fake.calls[0].request_id.startswith("r-7")


def test_a_line_tells_what_happened(gateway: TestClient, lines: Lines) -> None:
    gateway.get("/v1/models", headers={"X-Request-Id": "r-1", "User-Agent": "tests"})
    line = lines.only()
    assert line.pop("time")
    assert 0 < line.pop("duration_s") < 5
    assert line.pop("response_bytes") > 100
    assert line == {
        "level": "INFO",
        "logger": "chat_gateway.http.access",
        "message": "request",
        "request_id": "r-1",
        "client": "testclient",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "request_bytes": 0,
        "user_agent": "tests",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [CHAT, CHAT | {"nonsense": PROMPT}, CHAT | {"temperature": PROMPT}, {"model": PROMPT}])
def test_no_line_has_a_prompt_or_a_key(lines: Lines, body: dict[str, Any], stream: bool) -> None:
    client = TestClient(app_for(FakeClient(), api_keys=KEY))
    for key in (KEY, KEY + "-wrong"):
        headers = {"Authorization": f"Bearer {key}"}
        client.post(f"/v1/chat/completions?q={QUERY}", json=body | {"stream": stream}, headers=headers)
    assert len(lines.requests()) == 2
    for secret in (KEY, PROMPT, QUERY):
        assert secret not in lines.stream.getvalue()


@pytest.mark.parametrize("chained", [False, True])
def test_nor_has_the_line_of_an_unforeseen_error(fake: FakeClient, lines: Lines, chained: bool) -> None:
    async def broken(*_: object) -> AsyncIterator[Any]:
        try:
            raise KeyError(PROMPT)
        except KeyError as error:
            raise RuntimeError(PROMPT) from (error if chained else None)
        yield

    fake.script = broken
    with TestClient(app_for(fake)) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 500
    (line,) = [line for line in lines.all() if line["level"] == "ERROR"]
    assert line["request_id"] == lines.only()["request_id"]
    assert "RuntimeError" in line["exc_info"]
    assert ("KeyError" in line["exc_info"]) == chained
    assert "in broken" in line["exc_info"]
    assert PROMPT not in json.dumps(line)


def test_a_line_stays_one_line(gateway: TestClient, lines: Lines) -> None:
    gateway.get("/v1/models/a%0Ab%00", headers={"User-Agent": "x" * 1000})
    line = lines.only()
    assert line["path"] == "/v1/models/a\nb\x00"
    assert len(line["user_agent"]) == 256


def test_probes_are_quiet_unless_they_fail(gateway: TestClient, fake: FakeClient, lines: Lines) -> None:
    for path in ("/health/live", "/health/ready", "/health", "/ping", "/metrics"):
        assert gateway.get(path).status_code == 200
    assert lines.requests() == []
    fake.catalogue = []
    with TestClient(app_for(fake)) as client:
        client.get("/health/ready")
    assert lines.only()["status"] == 503


def test_a_stream_has_the_time_to_its_first_chunk(gateway: TestClient, lines: Lines) -> None:
    gateway.post("/v1/chat/completions", json=CHAT | {"stream": True})
    line = lines.only()
    assert 0 < line["first_chunk_s"] <= line["duration_s"]


def test_a_caller_who_leaves_a_stream(fake: FakeClient, lines: Lines) -> None:
    fake.script = hangs("one")
    with (
        served(app_for(fake)) as url,
        httpx2.stream("POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as response,
    ):
        next(response.iter_text())
        response.close()
        assert fake.streams[0].cancelled.wait(5)
        wait_until(lambda: lines.requests())
    assert lines.only()["status"] == 499


def test_a_caller_who_leaves_before_the_answer(fake: FakeClient, lines: Lines) -> None:
    fake.script = hangs()
    with served(app_for(fake)) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/v1/chat/completions", json=CHAT, timeout=0.3)
        assert fake.streams[0].cancelled.wait(5)
        wait_until(lambda: lines.requests())
    assert lines.only()["status"] == 499


def test_an_answer_that_was_cut_short(lines: Lines) -> None:
    """What the route does not say by itself shows as an incomplete transfer, and in the log as a failure."""
    app = app_for(FakeClient())
    router = APIRouter()

    @router.get("/half")
    async def half() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError

        return StreamingResponse(body())

    app.include_router(router)
    with served(app) as url, pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"{url}/half")
    assert lines.only()["status"] == 500


def test_an_error_in_the_engine(gateway: TestClient, fake: FakeClient, lines: Lines) -> None:
    fake.script = fails(EngineError("CUDA at 0x7f"))
    assert gateway.post("/v1/chat/completions", json=CHAT).status_code == 503
    assert lines.only()["status"] == 503
