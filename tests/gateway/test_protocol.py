from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from chat_gateway.protocol import MAX_HEAD_BYTES
from tests.gateway.apps import app_for, served
from tests.gateway.fakes import FakeClient

BEGIN = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_for(FakeClient())) as address:
        yield address


@pytest.fixture
def raw(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        yield connection


def is_cut_off(raw: socket.socket, line: bytes) -> bool:
    """Whether somebody who sends a line again and again is stopped from it."""
    try:
        for _ in range(256):
            raw.sendall(line * (MAX_HEAD_BYTES // len(line)))
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def test_the_largest_head(raw: socket.socket) -> None:
    for _ in range(3):  # over one connection: each request begins anew
        raw.sendall(BEGIN + b"a: " + b"b" * (MAX_HEAD_BYTES - len(BEGIN) - 100) + b"\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("begin", "line"),
    [
        (BEGIN, b"a: b\r\n"),
        (BEGIN + b"a: ", b"bbbb"),
        (b"GET /", b"aaaa"),
        (b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n"),
        (b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"aaaa"),
    ],
    ids=["headers", "value", "url", "trailers", "extension"],
)
def test_no_head_is_endless(raw: socket.socket, begin: bytes, line: bytes) -> None:
    raw.sendall(begin)
    assert is_cut_off(raw, line)


def test_a_body_is_no_head(raw: socket.socket) -> None:
    size = MAX_HEAD_BYTES * 8
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    raw.sendall(head % size + b" " * size)
    answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not JSON" in answer
