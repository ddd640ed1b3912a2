"""Clients that are slow, many or hostile, at a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import pytest

from chat_gateway.http.connections import SPARE, Connections, Transport
from chat_gateway.http.metrics import Metrics
from chat_gateway.http.protocol import MAX_HEAD_BYTES
from chat_gateway.settings import GatewaySettings
from tests.gateway.apps import app_for, connected, served, wait_until
from tests.gateway.callers import events_of
from tests.gateway.fakes import WAIT_S, FakeClient, event, hangs, says
from triton_chat.types import Call, ChatEvent

QUICK = 0.2
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = GET % b"/health/live"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
PIECE = "x" * 2**16
MOST_PIECES = 1024
"""64 MB: more than the kernel takes for a reader who reads nothing."""


def post(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return POST % len(content) + content


def all_of(raw: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    parts = []
    while part := raw.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def all_while_dripping(raw: socket.socket, drop: bytes) -> bytes:
    """What comes until the connection is closed, to somebody who keeps sending a little."""
    raw.settimeout(QUICK / 10)
    parts = []
    for _ in range(int(WAIT_S / QUICK * 10)):
        try:
            raw.sendall(drop)
            part = raw.recv(2**16)
        except TimeoutError:
            continue
        except ConnectionError:
            return b"".join(parts)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise AssertionError("the connection stays open")


def error_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of the one answer of a connection that was then closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert b"\r\ncontent-type: application/json" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


def closed_of(url: str, reason: str) -> float:
    return sample(url, f'triton_chat_gateway_connections_closed_total{{reason="{reason}"}}')


def sample(url: str, name: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


class Flood:
    """A script that says more than any reader's machine keeps for them. `made` counts its events."""

    def __init__(self) -> None:
        self.made = 0

    async def __call__(self, _: Call) -> AsyncIterator[ChatEvent]:
        for self.made in range(1, MOST_PIECES + 1):
            yield event(PIECE, self.made)
            await asyncio.sleep(0)
        await asyncio.Event().wait()


class TestHeads:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        with served(app_for(FakeClient(), head_timeout=QUICK, idle_timeout=60.0)) as address:
            yield address

    @pytest.mark.parametrize("begin", [b"G", b"GET /health/live HTTP/1.1\r\nHost: x\r\n"])
    def test_one_that_does_not_end(self, url: str, begin: bytes) -> None:
        with connected(url) as raw:
            raw.sendall(begin)
            status, error = error_of(all_of(raw))
        assert (status, error["code"], error["type"]) == (408, "request_timeout", "invalid_request_error")
        assert error["message"] == "the head of the request did not arrive within 0.2 seconds"
        assert closed_of(url, "slow_head") > 0

    def test_one_that_drips(self, url: str) -> None:
        with connected(url) as raw:
            raw.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: ")
            assert error_of(all_while_dripping(raw, b"a"))[0] == 408

    def test_one_that_does_not_begin(self, url: str) -> None:
        with connected(url) as raw:
            assert all_of(raw) == b""

    def test_the_second_one(self, url: str) -> None:
        with connected(url) as raw:
            raw.sendall(LIVE)
            assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
            raw.sendall(LIVE[:-2])
            assert error_of(all_of(raw))[0] == 408


class TestIdle:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        with served(app_for(FakeClient(), idle_timeout=QUICK)) as address:
            yield address

    def test_after_a_request(self, url: str) -> None:
        with connected(url) as raw:
            raw.sendall(LIVE)
            assert all_of(raw).startswith(b"HTTP/1.1 200 ")

    def test_blank_lines_are_no_request(self, url: str) -> None:
        """They may stand before one, and uvicorn's own limit begins anew with each."""
        with connected(url) as raw:
            raw.sendall(LIVE)
            assert all_while_dripping(raw, b"\r\n").startswith(b"HTTP/1.1 200 ")


class TestBodies:
    @pytest.fixture
    def url(self, fake: FakeClient) -> Iterator[str]:
        with served(app_for(fake, body_timeout=QUICK)) as address:
            yield address

    def test_one_that_does_not_end(self, url: str, fake: FakeClient) -> None:
        with connected(url) as raw:
            raw.sendall(POST % 9 + b"{")
            status, error = error_of(all_of(raw))
        assert (status, error["code"]) == (408, "request_timeout")
        assert error["message"] == "the body did not arrive within 0.2 seconds"
        assert fake.calls == []

    def test_one_that_drips(self, url: str) -> None:
        with connected(url) as raw:
            raw.sendall(POST % 10_000 + b"{")
            assert error_of(all_while_dripping(raw, b" "))[0] == 408

    def test_one_whose_request_was_refused_before(self, url: str) -> None:
        with connected(url) as raw:
            raw.sendall(b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n")
            assert all_while_dripping(raw, b" ").startswith(b"HTTP/1.1 404 ")
        assert closed_of(url, "slow_body") == 1


def test_who_waits_for_an_answer_has_time(fake: FakeClient) -> None:
    go = asyncio.Event()

    async def script(_: Call) -> AsyncIterator[ChatEvent]:
        yield event("one")
        await go.wait()
        yield event("two", 2, "stop")

    fake.script = script
    limits = {"head_timeout": QUICK, "body_timeout": QUICK, "idle_timeout": QUICK, "slow_reader_seconds": QUICK}
    with served(app_for(fake, **limits)) as url, connected(url) as raw, connected(url) as silent:
        raw.sendall(post(CHAT | {"stream": True}))
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
        raw.sendall(LIVE[:-2])  # a next head, which must not be answered in between
        assert all_of(silent) == b""  # so long it has taken by now
        raw.sendall(b"\r\n")
        fake.streams[0]._reading.get_loop().call_soon_threadsafe(go.set)
        answer = all_of(raw)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.index(b"data: [DONE]\n\n") < answer.index(b"HTTP/1.1 200 ")


class TestReaders:
    @pytest.fixture
    def url(self, fake: FakeClient) -> Iterator[str]:
        with served(app_for(fake, slow_reader_seconds=QUICK)) as address:
            yield address

    def test_a_stream_that_nobody_reads(self, url: str, fake: FakeClient, caplog: pytest.LogCaptureFixture) -> None:
        fake.script = flood = Flood()
        with caplog.at_level(logging.INFO), connected(url) as raw:
            raw.sendall(post(CHAT | {"stream": True}))
            wait_until(lambda: fake.streams and fake.streams[0].cancelled.is_set())
            assert flood.made * len(PIECE) < 16 * 2**20
            wait_until(lambda: closed_of(url, "slow_reader") == 1)
        (line,) = [record for record in caplog.records if record.message == "closing a connection"]
        assert (line.reason, line.client) == ("slow_reader", "127.0.0.1")
        wait_until(lambda: [record for record in caplog.records if getattr(record, "status", None) == 499])
        (ended,) = [record for record in caplog.records if getattr(record, "status", None) == 499]
        assert ended.request_id == line.request_id
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    def test_an_answer_that_nobody_reads(self, url: str, fake: FakeClient) -> None:
        """It is complete for the app, and closing alone would wait for the reader."""
        fake.script = says(*[PIECE] * 256)
        with connected(url) as raw:
            raw.sendall(post(CHAT))
            wait_until(lambda: closed_of(url, "slow_reader") == 1)
            wait_until(lambda: sample(url, "triton_chat_gateway_open_connections") == 1)

    def test_who_reads_gets_all(self, fake: FakeClient) -> None:
        fake.script = says(*[PIECE] * 256)
        with served(app_for(fake, slow_reader_seconds=3.0)) as url:
            answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}, timeout=WAIT_S)
        *chunks, done = events_of(answer.text)
        assert sum(len(chunk["choices"][0]["delta"].get("content") or "") for chunk in chunks) == 256 * len(PIECE)
        assert done == "[DONE]"


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.unread = 0
        self._closing = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: Any) -> None:
        self.unread += len(data)

    def abort(self) -> None:
        self._closing = True

    def is_closing(self) -> bool:
        return self._closing


def test_since_when_nothing_is_read() -> None:
    inner = FakeTransport()
    transport = Transport(inner)
    transport.write(b"x" * 10)
    assert transport.stuck_s(100) == 0
    assert transport.stuck_s(110) == 10
    transport.write(b"x" * 10)
    assert transport.stuck_s(120) == 20
    inner.unread -= 1
    transport.write(b"x" * 10)  # more waits than before, and yet something was read
    assert transport.stuck_s(130) == 0
    assert transport.stuck_s(135) == 5
    inner.unread = 0
    assert transport.stuck_s(140) == 0
    transport.write(b"x")
    assert transport.stuck_s(200) == 60


def test_nothing_waits_at_first() -> None:
    transport = Transport(FakeTransport())
    assert transport.stuck_s(1e9) == 0


class TestHowMany:
    @contextmanager
    def full(self, fake: FakeClient, **limit: int) -> Iterator[str]:
        """A gateway in which two streams run, which are as many as may."""
        fake.script = hangs("one")
        with served(app_for(fake, **limit)) as url, ExitStack() as stack:
            for _ in range(2):
                raw = stack.enter_context(connected(url))
                raw.sendall(post(CHAT | {"stream": True}))
                assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
            yield url

    def test_in_all(self, fake: FakeClient) -> None:
        with self.full(fake, max_connections=2) as url, connected(url) as raw, connected(url) as probe:
            raw.sendall(GET % b"/v1/models")
            answer = all_of(raw)
            assert b"\r\nretry-after: 2" in answer
            status, error = error_of(answer)
            assert (status, error["code"]) == (503, "unavailable")
            probe.sendall(LIVE)
            assert probe.recv(4096).startswith(b"HTTP/1.1 200 ")

    def test_from_one_address(self, fake: FakeClient) -> None:
        with self.full(fake, max_connections_per_address=2) as url, connected(url) as raw:
            raw.sendall(post(CHAT))
            status, error = error_of(all_of(raw))
        assert (status, error["code"], error["type"]) == (429, "too_many_connections", "rate_limit_error")
        assert error["message"] == "there are too many connections from this address; at most 2 are allowed"
        assert len(fake.calls) == 2

    @pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
    def test_those_without_a_request_make_room(self, fake: FakeClient, limit: str) -> None:
        with served(app_for(fake, **{limit: 2})) as url, ExitStack() as stack:
            silent = [stack.enter_context(connected(url)) for _ in range(2 + SPARE)]
            newest = stack.enter_context(connected(url))
            assert is_gone(silent[0])
            for raw in (newest, *silent[1:]):
                raw.sendall(LIVE)
                assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")

    def test_no_limit(self, fake: FakeClient) -> None:
        with served(app_for(fake, max_connections=0)) as url, ExitStack() as stack:
            for raw in [stack.enter_context(connected(url)) for _ in range(50)]:
                raw.sendall(LIVE)
                assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")


def is_gone(raw: socket.socket) -> bool:
    try:
        return raw.recv(1) == b""
    except ConnectionError:
        return True


class FakeConnection:
    """One that has been without a request since `since`."""

    address = "::1"
    request_id = None
    stage: Any = "idle"

    def __init__(self, since: float, *, serving: bool = False, unread: int = 0) -> None:
        self.since = since
        self.serving = serving
        self.transport = FakeTransport()
        self.transport.unread = unread

    def give_up(self, error: object = None) -> None:
        raise AssertionError("nothing took too long")

    @property
    def aborted(self) -> bool:
        return self.transport.is_closing()


def test_what_is_closed_is_forgotten() -> None:
    connections = Connections(GatewaySettings(), Metrics())
    connection = FakeConnection(0)
    connections.add(connection)
    assert list(connections) == [connection]
    connections.remove(connection)
    assert list(connections) == []
    assert connections._of_address == {}


def test_who_makes_room() -> None:
    now = time.monotonic()
    connections = Connections(GatewaySettings(max_connections=5), Metrics())
    serving, unread, old = (
        FakeConnection(now - 9, serving=True),
        FakeConnection(now - 8, unread=1),
        FakeConnection(now - 7),
    )
    older, young, newest = FakeConnection(now - 7.5), FakeConnection(now), FakeConnection(now)
    everyone = [serving, unread, old, older, young, newest]
    for connection in everyone:
        connections.add(connection)
    assert [connection for connection in everyone if connection.aborted] == [older]


def test_beyond_the_spare_ones_the_new_one_goes() -> None:
    connections = Connections(GatewaySettings(max_connections=5), Metrics())
    everyone = [FakeConnection(time.monotonic(), serving=True) for _ in range(5 + SPARE)]
    newest = FakeConnection(time.monotonic())
    for connection in (*everyone, newest):
        connections.add(connection)
    assert newest.aborted
    assert not any(connection.aborted for connection in everyone)


class TestWhatIsNoHttp:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        with served(app_for(FakeClient())) as address:
            yield address

    @pytest.mark.parametrize(
        "content",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"GET /health/live HTTP/9.9\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST /nope HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n",
            POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"z\r\n",
        ],
        ids=["tls", "nonsense", "version", "header", "length", "chunk"],
    )
    def test_it_gets_the_api_s_error(self, url: str, content: bytes) -> None:
        before = closed_of(url, "malformed")
        with connected(url) as raw:
            raw.sendall(content)
            status, error = error_of(all_of(raw))
        assert (status, error["code"]) == (400, "invalid_http")
        assert error["message"] == "the request is not valid HTTP"
        assert closed_of(url, "malformed") == before + 1

    def test_a_head_that_is_too_large(self, url: str) -> None:
        with connected(url) as raw:
            begin = b"GET /health/live HTTP/1.1\r\nX: "
            raw.sendall(begin.ljust(MAX_HEAD_BYTES + 1, b"a"))  # what is not read before the end would reset it
            status, error = error_of(all_of(raw))
        assert (status, error["code"]) == (431, "request_too_large")

    def test_it_does_not_get_into_another_answer(self, fake: FakeClient) -> None:
        fake.script = hangs("one")
        with served(app_for(fake)) as url, connected(url) as raw:
            raw.sendall(post(CHAT | {"stream": True}))
            begin = raw.recv(4096)
            raw.sendall(b"nonsense\r\n\r\n")
            answer = begin + all_of(raw)
            wait_until(fake.streams[0].cancelled.is_set)
        assert answer.count(b"HTTP/1.1") == 1
        assert all("error" not in chunk for chunk in events_of(answer.decode()))
