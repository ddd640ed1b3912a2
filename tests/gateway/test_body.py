from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import APIRouter, Body, FastAPI
from starlette.testclient import TestClient

from chat_gateway.http.body import MAX_DEPTH, JsonRoute
from tests.gateway.apps import app_for, served, wait_until
from tests.gateway.fakes import FakeClient

LIMIT = 64 * 1024
JSON = {"Content-Type": "application/json"}
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

router = APIRouter(route_class=JsonRoute)


@router.post("/echo")
async def echo(body: Annotated[Any, Body()]) -> Any:
    return body


@router.post("/bodyless")
async def bodyless() -> str:
    return "done"


def echoing_app() -> FastAPI:
    app = app_for(FakeClient(), max_body_bytes=LIMIT)
    app.include_router(router)
    return app


@pytest.fixture
def client() -> TestClient:
    return TestClient(echoing_app())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(echoing_app()) as address:
        yield address


def post(client: TestClient, content: bytes | str) -> httpx2.Response:
    return client.post("/echo", content=content, headers=JSON)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"a": [1, 2.5, null, true, "你好 \\u4f60"]}', {"a": [1, 2.5, None, True, "你好 你"]}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        (" [] ", []),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
    ],
)
def test_json(client: TestClient, content: str, value: object) -> None:
    response = post(client, content)
    assert response.status_code == 200
    assert value is None or response.json() == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "empty"),
        ("{", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("{} {}", "trailing characters"),
        ('{"a": NaN}', "not JSON"),
        ("[Infinity]", "not JSON"),
        ("[-Infinity]", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ("{}".encode("utf-16"), "not JSON"),
        ('"\\ud800"', "not JSON"),
        ("1" * 5000, "out of range"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "recursion limit"),
        ("[" * (LIMIT - 1), "recursion limit"),
        ('{"a":' * (LIMIT // 5 - 1), "recursion limit"),
    ],
)
def test_not_json(client: TestClient, content: bytes | str, words: str) -> None:
    response = post(client, content)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("name", ["application/json", "Application/JSON; charset=UTF-8", "application/json;x=y"])
def test_the_types_that_are_taken(client: TestClient, name: str) -> None:
    assert client.post("/echo", content="{}", headers={"Content-Type": name}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/vnd.api+json"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "nonsense"},
        {"Content-Type": ""},
        {},
        JSON | {"Content-Encoding": "gzip"},
    ],
)
def test_the_types_that_are_not(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post("/echo", content="{}", headers=headers)
    error = response.json()["error"]
    assert response.status_code == 415
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_media_type")


def test_headers_of_clients_change_nothing(client: TestClient) -> None:
    headers = JSON | {
        "Accept": "application/json", "Accept-Encoding": "gzip, br, zstd", "x-stainless-lang": "python",
        "x-stainless-retry-count": "0", "OpenAI-Organization": "org", "OpenAI-Project": "p", "User-Agent": "x/1",
        "traceparent": "nonsense", "Origin": "https://x.example", "X-Unheard-Of": "y",
    }  # fmt: skip
    response = client.post("/echo", content="{}", headers=headers)
    assert (response.status_code, response.json()) == (200, {})
    assert "content-encoding" not in response.headers


def test_a_route_without_a_body_reads_none(client: TestClient) -> None:
    assert client.post("/bodyless", content=b"not JSON").json() == "done"


def test_the_largest_body(client: TestClient) -> None:
    assert post(client, f'"{"x" * (LIMIT - 2)}"').status_code == 200
    assert post(client, f'"{"x" * (LIMIT - 1)}"').status_code == 413


def test_an_announced_body_is_refused_unread(url: str) -> None:
    """Also one that never comes."""
    with connection(url) as raw:
        raw.sendall(HEAD + b"Content-Length: 99999999\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_refused_while_it_is_read(url: str) -> None:
    """Without waiting for its end."""
    chunk = b"%x\r\n%s\r\n" % (LIMIT // 2, b"x" * (LIMIT // 2))
    with connection(url) as raw:
        raw.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        raw.sendall(chunk * 3)
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_oversized_body_gets_its_answer_through(url: str) -> None:
    """A client that sends everything before it reads."""

    def chunks() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * LIMIT

    with httpx2.Client(base_url=url) as client:
        for content in (b"x" * (LIMIT * 64), chunks()):
            response = client.post("/echo", content=content, headers=JSON)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (413, "request_too_large")
            assert error["type"] == "invalid_request_error"


def test_a_client_that_leaves_while_it_sends(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chat_gateway.http.access")
    with connection(url) as raw:
        raw.sendall(HEAD + b"Content-Length: 9\r\n\r\n{")
    wait_until(lambda: [vars(record)["status"] for record in caplog.records] == [499])


def connection(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=5)
