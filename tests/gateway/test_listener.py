"""The command as a process, in front of a fake Triton."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from openai import APIError, OpenAI

from chat_gateway.__main__ import main
from chat_gateway.http.listener import Server, allow_descriptors
from chat_gateway.settings import GatewaySettings, variable
from tests.client.fake_server import FakeTriton, Received, Reply, say
from tests.gateway.apps import connected
from tests.gateway.callers import events_of
from tests.gateway.fakes import WAIT_S
from tests.ipv6 import needs_ipv6

ROOT = Path(__file__).parents[2]
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Gateway:
    """The process. `lines` is what it has written, read as JSON."""

    def __init__(self, triton_url: str, **settings: str) -> None:
        given = {"port": "0", "triton_url": triton_url, **settings}
        self.process = run_command(**given)
        self.lines: list[dict[str, Any]] = []
        self.url = self._wait_for("Uvicorn running on").split()[3]

    def _wait_for(self, message: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if message in self.lines[-1]["message"]:
                return str(self.lines[-1]["message"])
        raise AssertionError("the gateway ended")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        rest, _ = self.process.communicate(timeout=WAIT_S)
        self.lines += [json.loads(line) for line in rest.splitlines()]
        return self.process.returncode


def run_command(**settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(variable(""))}
    environment |= {variable(name): value for name, value in settings.items()}
    environment["PYTHONPATH"] = f"{ROOT / 'client'}:{ROOT / 'gateway'}"
    return subprocess.Popen(
        [sys.executable, "-m", "chat_gateway"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    server = FakeTriton()
    yield server
    server.stop()


@pytest.fixture
def start(triton: FakeTriton) -> Iterator[Any]:
    started: list[Gateway] = []

    def starter(**settings: str) -> Gateway:
        started.append(Gateway(triton.url, **settings))
        return started[-1]

    yield starter
    for gateway in started:
        gateway.process.kill()
        gateway.process.communicate()


def until_released(triton: FakeTriton) -> Reply:
    """A text, then a pause until the test ends it, then the rest."""

    def reply(received: Received) -> Iterator[Any]:
        yield say("one", tokens=1)
        triton.stall(received)
        yield say("two", "stop", tokens=2)

    return reply


def test_idle_it_stops_at_once(start: Any) -> None:
    gateway = start()
    assert httpx2.get(f"{gateway.url}/health/ready").status_code == 200
    gateway.stop()
    assert gateway.exit_code() == 0


def test_running_streams_finish(start: Any, triton: FakeTriton) -> None:
    triton.reply = until_released(triton)
    gateway = start(drain_timeout="20")
    with (
        httpx2.Client(base_url=gateway.url) as client,
        client.stream("POST", "/v1/chat/completions", json=STREAM) as response,
    ):
        chunks = response.iter_text()
        next(chunks)
        gateway.stop()
        wait_for_status(client, "/health/ready", 503)
        assert client.get("/health/live").status_code == 200
        refused = client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        triton.release.set()
        assert "".join(chunks).endswith("data: [DONE]\n\n")
    assert gateway.exit_code() == 0


CUT_SHORT = {
    "message": "the gateway stopped before the answer was complete; try again later",
    "type": "service_unavailable_error",
    "param": None,
    "code": "unavailable",
}


class TestTheDrainLimit:
    """What still runs then is ended, and told so. Nothing of it is a fault that the log should show."""

    def test_a_stream_ends_with_an_error(self, start: Any, triton: FakeTriton) -> None:
        triton.reply = triton.stalls_after("one")
        gateway = start(drain_timeout="1")
        with httpx2.stream("POST", f"{gateway.url}/v1/chat/completions", json=STREAM) as response:
            chunks = response.iter_text()
            next(chunks)
            gateway.stop()
            *_, last = events_of("".join(chunks))
        assert last == {"error": CUT_SHORT}
        stopped_well(gateway)
        assert triton.requests[-1].cancelled.wait(WAIT_S)

    def test_the_openai_package_raises_it(self, start: Any, triton: FakeTriton) -> None:
        triton.reply = triton.stalls_after("one")
        gateway = start(drain_timeout="1")
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        messages: Any = CHAT["messages"]
        stream = client.chat.completions.create(model="chat", messages=messages, stream=True)
        next(iter(stream))
        gateway.stop()
        with pytest.raises(APIError, match="the gateway stopped") as caught:
            list(stream)
        assert caught.value.code == "unavailable"
        stopped_well(gateway)

    @pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
    def test_what_has_not_begun_gets_a_status(self, start: Any, triton: FakeTriton, body: dict[str, Any]) -> None:
        triton.reply = triton.stalls_after()
        gateway = start(drain_timeout="1")
        with ThreadPoolExecutor() as pool:
            asking = pool.submit(httpx2.post, f"{gateway.url}/v1/chat/completions", json=body, timeout=WAIT_S)
            triton.next_request()
            gateway.stop()
            response = asking.result()
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert response.json() == {"error": CUT_SHORT}
        stopped_well(gateway)
        assert triton.requests[-1].cancelled.wait(WAIT_S)

    def test_a_body_that_does_not_come(self, start: Any) -> None:
        gateway = start(drain_timeout="1")
        with connected(gateway.url) as raw:
            raw.sendall(HEAD + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
            gateway.stop()
            assert raw.recv(4096).startswith(b"HTTP/1.1 503 ")
        stopped_well(gateway)

    def test_a_reader_who_does_not_read_keeps_nobody(self, start: Any, triton: FakeTriton) -> None:
        triton.reply = floods
        gateway = start(drain_timeout="1")
        with connected(gateway.url) as raw:
            body = json.dumps(STREAM).encode()
            raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert raw.recv(100).startswith(b"HTTP/1.1 200 ")
            gateway.stop()
            stopped_well(gateway)
        assert triton.requests[-1].cancelled.wait(WAIT_S)

    def test_a_second_signal_is_the_limit(self, start: Any, triton: FakeTriton) -> None:
        triton.reply = triton.stalls_after("one")
        gateway = start(drain_timeout="600")
        with (
            httpx2.Client(base_url=gateway.url) as client,
            client.stream("POST", "/v1/chat/completions", json=STREAM) as response,
        ):
            chunks = response.iter_text()
            next(chunks)
            gateway.stop()
            wait_for_status(client, "/health/ready", 503)
            gateway.stop()
            *_, last = events_of("".join(chunks))
            assert last == {"error": CUT_SHORT}
            stopped_well(gateway)


def stopped_well(gateway: Gateway) -> None:
    assert gateway.exit_code() == 0
    assert [line for line in gateway.lines if line["level"] not in {"INFO", "WARNING"} or "exc_info" in line] == []


def floods(received: Received) -> Iterator[Any]:
    """More than a reader's machine keeps for them."""
    for count in itertools.count(1):
        if received.cancelled.is_set():
            return
        yield say("x" * 2**16, tokens=count)


def test_every_line_is_json_and_none_has_a_key(start: Any) -> None:
    gateway = start(api_keys="sesame-key")
    headers = {"Authorization": "Bearer sesame-key"}
    httpx2.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=headers)
    gateway.stop()
    assert gateway.exit_code() == 0
    assert "sesame-key" not in json.dumps(gateway.lines)
    (line,) = [line for line in gateway.lines if line["logger"] == "chat_gateway.http.access"]
    assert line["path"] == "/v1/chat/completions"
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in gateway.lines))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": "tcp://10.0.0.1:9000"}, "enableServiceLinks"),
        ({"port": "x"}, "TRITON_CHAT_GATEWAY_PORT: "),
        ({"prot": "9000"}, "TRITON_CHAT_GATEWAY_PROT is not a setting"),
        ({"aliases": "{"}, "aliases"),
        ({"api_keys_file": "/nope/nope"}, "TRITON_CHAT_GATEWAY_API_KEYS_FILE"),
        ({"otlp_endpoint": "collector"}, "TRITON_CHAT_GATEWAY_OTLP_ENDPOINT: "),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], settings: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["triton-chat-gateway"])
    for name, value in settings.items():
        monkeypatch.setenv(variable(name), value)
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    assert words in capsys.readouterr().err


def test_a_port_in_use(start: Any) -> None:
    process = run_command(port=start().url.rpartition(":")[2])
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "address already in use" in out


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "open_to", "closed_to"),
    [
        ("::", ["127.0.0.1", "[::1]"], []),
        ("[::]", ["127.0.0.1", "[::1]"], []),
        ("::1", ["[::1]"], ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"], ["[::1]"]),
    ],
)
def test_the_families_it_listens_on(start: Any, host: str, open_to: list[str], closed_to: list[str]) -> None:
    port = start(host=host).url.rpartition(":")[2]
    for address in open_to:
        assert httpx2.get(f"http://{address}:{port}/health/live").status_code == 200
    for address in closed_to:
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"http://{address}:{port}/health/live")


@needs_ipv6
def test_triton_on_ipv6() -> None:
    triton = FakeTriton("[::1]:0")
    gateway = Gateway(triton.url, host="::")
    try:
        answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=CHAT, timeout=WAIT_S)
        assert answer.status_code == 200
    finally:
        gateway.stop()
        gateway.exit_code()
        triton.stop()


@needs_ipv6
def test_a_port_in_use_on_the_other_family(start: Any) -> None:
    process = run_command(port=start().url.rpartition(":")[2], host="::")
    out, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "cannot listen on port" in out


def test_without_ipv6_it_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def no_ipv6(family: int = socket.AF_INET, *rest: Any, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return made(family, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", no_ipv6)
        server = Server(FastAPI(), GatewaySettings(host="::", port=0))
        assert server._both_families() is None
    assert server.config.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [(100, 1000, 500), (100, 400, 400), (100, resource.RLIM_INFINITY, 500), (500, 1000, None)],
)
def test_open_files(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, raised: int | None
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    allow_descriptors(500)
    assert limits == ([] if raised is None else [(raised, hard)])
    assert ("fewer" in caplog.text) == (raised == 400)


def test_help_lists_every_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["triton-chat-gateway", "--help"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert not [name for name in GatewaySettings.model_fields if variable(name) not in shown]


def wait_for_status(client: httpx2.Client, path: str, status: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while client.get(path).status_code != status:
        assert time.monotonic() < deadline
