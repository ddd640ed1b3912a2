"""The runner itself, with a model of ten lines instead of an LLM: its starts take half a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from local import preflight
from local.settings import ROOT, TritonSettings
from local.triton import LocalTriton, TritonError

pytestmark = pytest.mark.usefixtures("able_to_serve")

CONFIG = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
output [ { name: "out" data_type: TYPE_INT32 dims: [ 1 ] } ]
input [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""

MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        if os.environ.get("BREAK"):
            raise ValueError("the weights are made of cheese")

    def execute(self, requests):
        for request in requests:
            out = pb_utils.Tensor("out", np.zeros(1, dtype=np.int32))
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse([out]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture
def settings(tmp_path: Path) -> TritonSettings:
    version = tmp_path / "models" / "tiny" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(textwrap.dedent(MODEL))
    return TritonSettings(
        repository=tmp_path / "models",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        log_path=tmp_path / "tritonserver.log",
        exit_timeout_s=3,
    )


def test_ready_inside_the_block_and_gone_after_it(settings: TritonSettings) -> None:
    stages: list[str] = []
    with LocalTriton(settings, stages.append) as server:
        assert server.poll() is None
        assert b"nv_cpu_utilization" in urllib.request.urlopen(server.metrics_url).read()
        assert shared_memory(server)
    assert server.poll() == 0
    assert stages[0] in ("starting tritonserver", "loading tiny")
    assert_nothing_left(server)


def test_a_model_that_does_not_load_is_an_error_with_its_cause(settings: TritonSettings) -> None:
    broken = LocalTriton(TritonSettings(**{**vars(settings), "extra_env": {"BREAK": "1"}}))
    with pytest.raises(TritonError, match="the weights are made of cheese"):
        broken.start()
    assert broken.poll() == 1
    assert_nothing_left(broken)


def test_a_client_that_keeps_its_stream_open_cannot_keep_the_server(settings: TritonSettings) -> None:
    with LocalTriton(settings) as server, InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("tiny", [count_input()])
        time.sleep(0.5)
        began = time.monotonic()
        code = server.stop()
        assert time.monotonic() - began < 10
    assert code in (0, 128 + signal.SIGKILL)
    assert_nothing_left(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_server_is_noticed_and_cleaned_up_after(settings: TritonSettings, number: signal.Signals) -> None:
    with LocalTriton(settings) as server:
        os.kill(server.pid, number)
        wait_for(lambda: server.poll() is not None)
        assert server.poll() != 0
    assert_nothing_left(server)


def test_a_killed_runner_leaves_nothing(settings: TritonSettings, tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from local.settings import TritonSettings
        from local.triton import LocalTriton
        server = LocalTriton(TritonSettings(repository=Path({str(settings.repository)!r}), http_port=0, grpc_port=0,
                             metrics_port=0, log_path=Path({str(settings.log_path)!r}), exit_timeout_s=3))
        server.start()
        print(server.pid, server._shm_prefix, flush=True)
        time.sleep(60)
    """
    runner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert runner.stdout is not None
    with runner.stdout as answer:
        pid, prefix = answer.readline().split()
    runner.kill()
    runner.wait()
    wait_for(lambda: not members(int(pid)) and not list(Path("/dev/shm").glob(prefix + "*")))


def test_serve_ends_on_ctrl_c_with_0_and_says_how_to_call(settings: TritonSettings) -> None:
    serve = start_serve(settings)
    output = read_until(serve, "Ctrl-C stops it.")
    assert "generate_stream" in output
    assert "triton-chat ask" in output
    serve.send_signal(signal.SIGINT)
    assert serve.wait(20) == 0


def test_serve_ends_with_1_when_the_server_dies(settings: TritonSettings) -> None:
    serve = start_serve(settings)
    read_until(serve, "Ctrl-C stops it.")
    for pid in server_pids(settings):
        os.kill(pid, signal.SIGKILL)
    assert "tritonserver died (exit code 137)" in read_until(serve, "last words")
    assert serve.wait(20) == 1


def test_serve_names_a_taken_port(settings: TritonSettings) -> None:
    with LocalTriton(settings) as server:
        port = server.settings.http_port
        problem = preflight.check_port("TRITON_HTTP_PORT", "127.0.0.1", port)
        serve = start_serve(settings, TRITON_HTTP_PORT=str(port))
        assert problem is not None
        assert problem.cause in read_until(serve, "fix")
        assert serve.wait(20) == 1


def start_serve(settings: TritonSettings, **environment: str) -> subprocess.Popen[str]:
    """The command itself, with the small repository in place of the real one."""
    script = f"""
        import dataclasses, sys
        from pathlib import Path
        from local import console, serve
        real = console.read_settings
        console.read_settings = lambda: dataclasses.replace(
            real(), repository=Path({str(settings.repository)!r}), log_path=Path({str(settings.log_path)!r}))
        from local.__main__ import app
        app(["serve"])
    """
    ports = {f"TRITON_{door}_PORT": "0" for door in ("HTTP", "GRPC", "METRICS")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, **ports, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    output = "".join(lines)
    assert text in output, output
    return output


def server_pids(settings: TritonSettings) -> list[int]:
    wanted = f"--model-repository={settings.repository}"
    commands = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [pid for pid, path in commands.items() if _arguments(path)[1:2] == [wanted]]


def _arguments(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def count_input() -> InferInput:
    import numpy as np

    tensor = InferInput("count", [1], "INT32")
    tensor.set_data_from_numpy(np.ones(1, dtype=np.int32))
    return tensor


def shared_memory(server: LocalTriton) -> list[Path]:
    return list(Path("/dev/shm").glob(server._shm_prefix + "*"))


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, its_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def assert_nothing_left(server: LocalTriton) -> None:
    assert not shared_memory(server)
    wait_for(lambda: not members(server.pid))


def wait_for(condition, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
