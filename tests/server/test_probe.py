from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.ipv6 import needs_ipv6
from triton_chat_server.probe import checks, command
from triton_chat_server.probe.exposition import by_model
from triton_chat_server.serve.families import POD_IP_VARIABLE


class FakeServer:
    """tritonserver's health and metrics, as a probe sees them.

    Attributes:
        status: path to HTTP status; 200 where it is not named.
        models: to heartbeat, running sequences and last step; the times as ages in seconds.
    """

    def __init__(self) -> None:
        self.status: dict[str, int] = {}
        self.models: dict[str, tuple[float, int, float]] = {"chat": (0.2, 0, 1000.0)}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                body = fake.metrics().encode() if self.path == "/metrics" else b""
                self.send_response(fake.status.get(self.path, 200))
                self.end_headers()
                self.wfile.write(body)

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def metrics(self) -> str:
        now = time.time()
        lines = ['nv_inference_count{model="chat",version="1"} 4', "# TYPE triton_chat_requests_running gauge"]
        for model, (heartbeat, running, step) in self.models.items():
            lines += [
                f'{checks.HEARTBEAT}{{model="{model}"}} {now - heartbeat:.6f}',
                f'{checks.RUNNING}{{model="{model}"}} {running}',
                f'{checks.LAST_STEP}{{model="{model}"}} {now - step:.16e}',
            ]
        return "\n".join(lines) + "\n"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    thread = threading.Thread(target=fake.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.http.shutdown()
    fake.http.server_close()
    thread.join()


def probe(server: FakeServer, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    urls = ["--http", server.url, "--metrics", f"{server.url}/metrics"]
    return command.main([*arguments, *urls]), capsys.readouterr().err.strip()


class TestLive:
    def test_idle(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        assert probe(server, capsys, "live") == (0, "")

    def test_busy(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.models["chat"] = (0.2, 64, 119.0)
        assert probe(server, capsys, "live") == (0, "")

    def test_a_silent_process(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.models["chat"] = (125.0, 0, 1000.0)
        assert probe(server, capsys, "live") == (1, "the process of the model 'chat' has sent no heartbeat for 125 s")

    @pytest.mark.parametrize(
        ("age", "options", "code"),
        [
            (29, [], 0),
            (31, [], 1),
            (29, ["--stall-seconds=5"], 0),
            (31, ["--stall-seconds=300"], 1),
            (9, ["--silent-seconds=8"], 1),
            (100, ["--silent-seconds=200"], 0),
        ],
    )
    def test_how_long_it_may_be_silent(
        self, server: FakeServer, capsys: pytest.CaptureFixture[str], age: float, options: list[str], code: int
    ) -> None:
        server.models["chat"] = (age, 0, 1000.0)
        assert probe(server, capsys, "live", *options)[0] == code

    def test_a_stall(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.models["chat"] = (0.2, 1, 130.0)
        reason = "the model 'chat' has running sequences, but has made no step for 130 s"
        assert probe(server, capsys, "live") == (1, reason)
        assert probe(server, capsys, "live", "--stall-seconds=200") == (0, "")

    def test_each_chat_model_counts(
        self, server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("chat", "more"):
            (tmp_path / f"{name}.json").write_text("{}")
        monkeypatch.setenv("TRITON_CHAT_ENGINE_CONFIG", str(tmp_path))
        assert probe(server, capsys, "live") == (1, "the model 'more' has no metrics")
        server.models["more"] = (500.0, 0, 500.0)
        assert "the model 'more' has sent no heartbeat" in probe(server, capsys, "live")[1]
        assert probe(server, capsys, "live", "--model", "chat") == (0, "")

    def test_tritonserver_says_no(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.status["/v2/health/live"] = 400
        assert probe(server, capsys, "live") == (1, "tritonserver is not live: HTTP status 400")


class TestReady:
    def test_ready(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        assert probe(server, capsys, "ready") == (0, "")

    @pytest.mark.parametrize(
        ("path", "reason"),
        [("/v2/health/ready", "tritonserver is not ready"), ("/v2/models/chat/ready", "the model 'chat' is not ready")],
    )
    def test_not_ready(self, server: FakeServer, capsys: pytest.CaptureFixture[str], path: str, reason: str) -> None:
        server.status[path] = 400
        assert probe(server, capsys, "ready") == (1, f"{reason}: HTTP status 400")

    @pytest.mark.parametrize(
        ("age", "options", "code"), [(4, [], 0), (6, [], 1), (6, ["--silent-seconds=8"], 0), (60, [], 1)]
    )
    def test_a_silent_process(
        self, server: FakeServer, capsys: pytest.CaptureFixture[str], age: float, options: list[str], code: int
    ) -> None:
        """Triton calls its model ready."""
        server.models["chat"] = (age, 0, 1000.0)
        reason = f"the process of the model 'chat' has sent no heartbeat for {age} s" if code else ""
        assert probe(server, capsys, "ready", *options) == (code, reason)

    def test_a_stall_is_a_matter_of_live(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.models["chat"] = (0.2, 1, 500.0)
        assert probe(server, capsys, "ready") == (0, "")

    def test_a_model_without_metrics(self, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.models.clear()
        assert probe(server, capsys, "ready") == (1, "the model 'chat' has no metrics")


@pytest.mark.parametrize(("pod_ip", "here"), [("10.1.2.3", "127.0.0.1"), ("fd00::5", "[::1]")])
def test_the_default_is_where_serve_listens(monkeypatch: pytest.MonkeyPatch, pod_ip: str, here: str) -> None:
    monkeypatch.setenv(POD_IP_VARIABLE, pod_ip)
    options = command._parser().parse_args(["ready"])
    assert (options.http, options.metrics) == (f"http://{here}:8000", f"http://{here}:8002/metrics")


@needs_ipv6
def test_over_ipv6() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{checks.HEARTBEAT}{{model="chat"}} {time.time()}\n'.encode())

    class Server(HTTPServer):
        address_family = socket.AF_INET6

    with Server(("::1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://[::1]:{server.server_address[1]}"
        assert command.main(["ready", "--http", url, "--metrics", f"{url}/metrics"]) == 0
        server.shutdown()


@pytest.mark.parametrize("what", ["live", "ready"])
def test_nobody_there(capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert command.main([what, "--http", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9/v2/health" in capsys.readouterr().err


def test_one_that_accepts_and_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert command.main(["live", "--http", f"http://127.0.0.1:{silent.getsockname()[1]}"]) == 1
    assert "does not answer: timed out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["alive"],
        ["live", "--http", "localhost:8000"],
        ["live", "--http", "http://h:abc"],
        ["live", "--stall-seconds=0"],
        ["live", "--stall-seconds=soon"],
    ],
)
def test_a_wrong_command_line_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2


def test_samples_by_model() -> None:
    text = '# HELP a x\na{model="chat"} 1\na{model="more",le="1"} 2.5e+09\nab{model="chat"} 9\na 7\nb{model="chat"} 3\n'
    assert by_model(text, "a") == {"chat": 1.0, "more": 2.5e9}
