"""`make serve` with real processes: tritonserver with the chat model, the gateway, the page."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.gateway import LocalGateway
from local.options import ROOT, GatewayOptions, PageOptions
from local.page import LocalPage
from local.preflight import PORT_NAMES
from local.service import ServerError

pytestmark = pytest.mark.usefixtures("able_to_serve")

MARK = "TRITON_CHAT_TEST_OF"
"""A variable that all processes of one launcher inherit, so that they can be found."""

SHM_PREFIX = re.compile(r"shm-region-prefix-name=(\S+)")

LAUNCHER = """
import sys
from dataclasses import replace
from pathlib import Path
from local import serve
from local.__main__ import app
from local.options import StackOptions
from local.stack import LocalStack

def stack_of(environment):
    folder = Path(sys.argv[1])
    real = StackOptions.from_environment(environment)
    return LocalStack(StackOptions(
        triton=replace(real.triton, models=("chat",), log_path=folder / "tritonserver.log"),
        gateway=replace(real.gateway, log_path=folder / "gateway.log"),
        page=replace(real.page, log_path=folder / "page.log"),
    ))

serve.stack_of = stack_of
app(["serve"])
"""


class Serve:
    """The command, on free ports and with logs of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._mark = f"{MARK}={folder}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(folder)],
            cwd=ROOT,
            env={**os.environ, **dict.fromkeys(PORT_NAMES, "0"), MARK: str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                break
        output = "".join(lines)
        assert text in output, output
        return output

    def processes(self) -> dict[int, str]:
        """The launcher and all that it has started: process ids and command lines."""
        marked = (folder for folder in Path("/proc").glob("[0-9]*") if self._mark in words(folder / "environ"))
        found = {int(folder.name): " ".join(words(folder / "cmdline")) for folder in marked}
        return {pid: command for pid, command in found.items() if command}

    def pid_of(self, server: str) -> int:
        """Of a server, not of its keeper."""
        (pid,) = (pid for pid, command in self.processes().items() if server in command and "keeper.py" not in command)
        return pid

    def shared_memory(self) -> list[Path]:
        (prefix,) = {found for command in self.processes().values() for found in SHM_PREFIX.findall(command)}
        return list(Path("/dev/shm").glob(prefix + "*"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        wait_for(lambda: not self.processes())


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(**environment: str) -> Serve:
        started.append(Serve(tmp_path, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


def test_both_doors_answer_and_sigterm_lets_an_answer_finish(serve: Callable[..., Serve]) -> None:
    stack = serve()
    overview = stack.read_until("Press Ctrl-C to stop.")
    assert all(re.search(rf"✓ +{name} +\d+\.\d s  ready", overview) for name in ("tritonserver", "gateway", "page"))
    answer = json.load(urllib.request.urlopen(request_of(overview)))
    assert "tiny-chat" in answer["choices"][0]["message"]["content"]
    assert b"<title>" in urllib.request.urlopen(address_in(overview, "page")).read()

    regions = stack.shared_memory()
    assert regions
    with urllib.request.urlopen(request_of(overview, stream=True, ignore_eos=True, max_tokens=400)) as stream:
        assert stream.readline().startswith(b"data: ")
        stack.process.terminate()
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert stack.process.wait(30) == 0
    assert not stack.processes()
    assert not any(region.exists() for region in regions)


def test_one_that_dies_is_started_again(serve: Callable[..., Serve]) -> None:
    stack = serve()
    overview = stack.read_until("Press Ctrl-C to stop.")
    os.kill(stack.pid_of("-m chat_gateway"), signal.SIGKILL)
    assert "gateway died (exit code 137); the end of its log:" in stack.read_until("end of its log")
    assert "Uvicorn running" in stack.read_until("Uvicorn running")
    stack.read_until("gateway is back")
    answer = json.load(urllib.request.urlopen(request_of(overview)))
    assert "tiny-chat" in answer["choices"][0]["message"]["content"]
    stack.process.terminate()
    assert stack.process.wait(30) == 0
    assert not stack.processes()


def test_a_killed_launcher_leaves_nothing(serve: Callable[..., Serve]) -> None:
    stack = serve()
    stack.read_until("Press Ctrl-C to stop.")
    regions = stack.shared_memory()
    stack.process.kill()
    wait_for(lambda: not stack.processes())
    assert not any(region.exists() for region in regions)


@pytest.mark.parametrize("variable", ["GATEWAY_PORT", "UI_PORT"])
def test_a_taken_port_is_named(serve: Callable[..., Serve], variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = serve(**{variable: str(port)})
        assert f"port {port} is taken ({variable})." in refused.read_until("fix")
        assert refused.process.wait(20) == 1


def test_a_gateway_with_a_wrong_setting_says_so(tmp_path: Path) -> None:
    options = GatewayOptions(port=0, log_path=tmp_path / "log", extra_env={"TRITON_CHAT_GATEWAY_RETRY_AFTER": "soon"})
    with pytest.raises(ServerError, match=r"(?s)gateway stopped while starting \(exit code 2\).*GATEWAY_RETRY_AFTER"):
        LocalGateway(options, "127.0.0.1:9").start()


def test_the_page_needs_no_gateway_to_come_up(tmp_path: Path) -> None:
    with LocalPage(PageOptions(port=0, log_path=tmp_path / "log"), "http://127.0.0.1:9") as page:
        assert b"<title>" in urllib.request.urlopen(page.url).read()
    assert page.poll() == 128 + signal.SIGTERM  # streamlit stops cleanly, and then passes the signal on


def words(path: Path) -> list[str]:
    """What a file of /proc lists; nothing if the process is gone."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0").split("\0")
    except OSError:
        return []


def request_of(overview: str, **more: object) -> urllib.request.Request:
    """The curl line that is printed, and fields to add to its body."""
    line = next(line for line in overview.splitlines() if "/chat/completions" in line)
    _curl, url, _header, header, _data, body = shlex.split(line)
    name, value = header.split(": ")
    return urllib.request.Request(url, json.dumps({**json.loads(body), **more}).encode(), {name: value})


def address_in(overview: str, door: str) -> str:
    return next(line.split()[1] for line in overview.splitlines() if line.startswith(door + " "))


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
