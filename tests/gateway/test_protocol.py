"""What goes over the wire, at a real uvicorn."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from chat_gateway.http.protocol import MAX_HEAD_BYTES
from tests.gateway.apps import app_for, served
from tests.gateway.callers import events_of
from tests.gateway.fakes import FakeClient

BEGIN = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}
OFFERS = {
    "java": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAA"},
    "websocket": {"Connection": "keep-alive, Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "eA=="},
    "unheard of": {"connection": "upgrade", "upgrade": "HTTP/3.0, nonsense/7"},
    "two": {"Connection": "upgrade", "Upgrade": "h2c", "uPGRADE": "websocket"},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(app_for(FakeClient())) as address:
        yield address


@pytest.fixture
def raw(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        yield connection


def post(body: bytes, headers: dict[str, str], version: str = "1.1", path: str = "/v1/chat/completions") -> bytes:
    """A request; its body is sent in chunks if the headers say so."""
    if "Transfer-Encoding" in headers:
        half = len(body) // 2
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    else:
        headers = {"Content-Length": str(len(body)), **headers}
    lines = [f"POST {path} HTTP/{version}", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def asked(content: str = "hi", *, stream: bool = False) -> bytes:
    body = {"model": "chat", "messages": [{"role": "user", "content": content}], "stream": stream}
    return json.dumps(body).encode()


class Answer:
    """The next answer on a connection, read as a client of HTTP/1.1 does."""

    def __init__(self, reader: io.BufferedReader) -> None:
        self.status = int(reader.readline().split()[1])
        self.headers = http.client.parse_headers(reader)
        length = self.headers["content-length"]
        self.body = reader.read(int(length)) if length else b"" if self.status == 100 else reader.read()


class TestOffersOfAnotherProtocol:
    """They are ignored: the answer is the same as without."""

    @pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
    @pytest.mark.parametrize("how", [{}, {"Transfer-Encoding": "chunked"}], ids=["length", "chunks"])
    def test_the_body_is_read_and_the_connection_kept(
        self, raw: socket.socket, offer: dict[str, str], how: dict[str, str]
    ) -> None:
        reader = raw.makefile("rb")
        for headers in (offer, offer, {}):
            raw.sendall(post(asked(), JSON | how | headers))
            answer = Answer(reader)
            assert answer.status == 200
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hello there"
            assert answer.headers["connection"] is None

    def test_byte_by_byte(self, raw: socket.socket) -> None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in post(asked(), JSON | OFFERS["java"]):
            raw.sendall(bytes([byte]))
        assert Answer(raw.makefile("rb")).status == 200

    def test_several_in_one_packet(self, raw: socket.socket) -> None:
        requests = [
            post(asked(), JSON | OFFERS["java"]),
            BEGIN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            post(b"{,", JSON | OFFERS["two"] | {"Transfer-Encoding": "chunked"}),
            post(asked(), JSON | {"Connection": "close"}),
        ]
        raw.sendall(b"".join(requests))
        reader = raw.makefile("rb")
        assert [Answer(reader).status for _ in requests] == [200, 200, 400, 200]

    def test_a_stream(self, raw: socket.socket) -> None:
        raw.sendall(post(asked(stream=True), JSON | OFFERS["java"] | {"Connection": "Upgrade, close"}))
        assert Answer(raw.makefile("rb")).body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    def test_a_body_that_waits_to_be_wanted(self, raw: socket.socket) -> None:
        request = post(asked(), JSON | OFFERS["java"] | {"Expect": "100-continue"})
        head, end, body = request.partition(b"\r\n\r\n")
        reader = raw.makefile("rb")
        raw.sendall(head + end)
        assert Answer(reader).status == 100
        raw.sendall(body)
        assert Answer(reader).status == 200

    def test_a_large_body(self, raw: socket.socket) -> None:
        raw.sendall(post(asked("x" * MAX_HEAD_BYTES * 16), JSON | OFFERS["java"]))
        assert Answer(raw.makefile("rb")).status == 200

    def test_nothing_is_smuggled_past_the_first_reading(self, raw: socket.socket) -> None:
        raw.sendall(post(asked(), JSON | OFFERS["java"] | {"Content-Length": "5", "transfer-encoding": "chunked"}))
        assert Answer(raw.makefile("rb")).status == 400

    def test_a_connect_is_no_offer(self, raw: socket.socket) -> None:
        raw.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert Answer(raw.makefile("rb")).status == 400

    @pytest.mark.parametrize("offer", ["--http2", "--http1.1"])
    def test_curl(self, url: str, offer: str) -> None:
        curl = shutil.which("curl")
        if curl is None:
            pytest.skip("curl is not installed")
        asks = [url + "/v1/chat/completions", "--json", asked().decode()]
        found = subprocess.run([curl, "-sS", "-w", "%{http_code}", offer, *asks], capture_output=True, check=True)
        assert found.stdout.endswith(b"200")


class TestHttp10:
    def test_a_stream_ends_with_the_connection(self, raw: socket.socket) -> None:
        raw.sendall(post(asked(stream=True), JSON | {"Connection": "keep-alive"}, "1.0"))
        answer = Answer(raw.makefile("rb"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.headers["transfer-encoding"] is None
        *chunks, done = events_of(answer.body.decode())
        assert answer.body.decode() == "".join(f"data: {json.dumps(c, separators=(',', ':'))}\n\n" for c in chunks) + (
            "data: [DONE]\n\n"
        )
        assert done == "[DONE]"

    def test_an_answer_has_a_length_and_closes(self, raw: socket.socket) -> None:
        raw.sendall(post(asked(), JSON, "1.0"))
        reader = raw.makefile("rb")
        answer = Answer(reader)
        assert (answer.status, answer.headers["connection"], reader.read()) == (200, "close", b"")
        assert json.loads(answer.body)["object"] == "chat.completion"

    @pytest.mark.parametrize("offer", [{}, OFFERS["java"]])
    def test_the_connection_is_kept_for_those_who_ask(self, raw: socket.socket, offer: dict[str, str]) -> None:
        reader = raw.makefile("rb")
        for _ in range(3):
            raw.sendall(post(asked(), JSON | offer | {"Connection": "Keep-Alive, Upgrade"}, "1.0"))
            answer = Answer(reader)
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")

    def test_chunks_of_a_version_that_has_none_end_the_connection(self, raw: socket.socket) -> None:
        """RFC 9112, 6.1: whoever passed them on may have meant another end of the body."""
        raw.sendall(post(asked(), JSON | {"Connection": "keep-alive", "Transfer-Encoding": "chunked"}, "1.0"))
        reader = raw.makefile("rb")
        assert (Answer(reader).headers["connection"], reader.read()) == ("close", b"")

    def test_an_error(self, raw: socket.socket) -> None:
        raw.sendall(post(b"{", JSON, "1.0"))
        reader = raw.makefile("rb")
        answer = Answer(reader)
        assert (answer.status, reader.read()) == (400, b"")
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"

    def test_nobody_is_told_to_continue(self, raw: socket.socket) -> None:
        """Those who speak HTTP/1.0 do not know the status 100."""
        raw.sendall(post(asked(), JSON | {"Expect": "100-continue"}, "1.0"))
        assert Answer(raw.makefile("rb")).status == 200


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
