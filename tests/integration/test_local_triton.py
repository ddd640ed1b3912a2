"""The runner itself, with a model of ten lines instead of an LLM: its starts take half a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from local.options import ROOT, TritonOptions
from local.service import ServerError
from local.triton import LocalTriton
from tests.ipv6 import needs_ipv6
from triton_chat import ChatClient

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
def options(tmp_path: Path) -> TritonOptions:
    version = tmp_path / "models" / "tiny" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(textwrap.dedent(MODEL))
    return TritonOptions(
        repository=tmp_path / "models",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        log_path=tmp_path / "tritonserver.log",
        exit_timeout_s=3,
    )


def test_ready_inside_the_block_and_gone_after_it(options: TritonOptions) -> None:
    with LocalTriton(options) as server:
        assert server.poll() is None
        assert server.stage == "ready"
        assert server.ready_after_s
        assert b"nv_cpu_utilization" in urllib.request.urlopen(server.metrics_url).read()
        assert shared_memory(server)
    assert server.poll() == 0
    assert_nothing_left(server)


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "::"])
def test_all_its_doors_over_ipv6(options: TritonOptions, host: str) -> None:
    with LocalTriton(replace(options, host=host)) as server:
        assert "[::1]" in server.http_url
        assert b"nv_cpu_utilization" in urllib.request.urlopen(server.metrics_url).read()
        with ChatClient(server.grpc_address) as client:
            assert client.is_ready("tiny")


def test_a_model_that_does_not_load_is_an_error_with_its_cause(options: TritonOptions) -> None:
    broken = LocalTriton(TritonOptions(**{**vars(options), "extra_env": {"BREAK": "1"}}))
    with pytest.raises(ServerError, match="the weights are made of cheese"):
        broken.start()
    assert broken.poll() == 1
    assert_nothing_left(broken)


def test_a_client_that_keeps_its_stream_open_cannot_keep_the_server(options: TritonOptions) -> None:
    with LocalTriton(options) as server, InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("tiny", [count_input()])
        time.sleep(0.5)
        began = time.monotonic()
        code = server.stop()
        assert time.monotonic() - began < 10
    assert code == 1  # nobody knows whether a model without heartbeats has finished
    assert_nothing_left(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("whose", ["pid", "server_pid"])
def test_a_killed_server_is_noticed_and_cleaned_up_after(
    options: TritonOptions, whose: str, number: signal.Signals
) -> None:
    with LocalTriton(options) as server:
        os.kill(getattr(server, whose), number)
        wait_for(lambda: server.poll() is not None)
        assert server.poll() != 0
    assert_nothing_left(server)


def test_a_killed_runner_leaves_nothing(options: TritonOptions, tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from local.options import TritonOptions
        from local.triton import LocalTriton
        server = LocalTriton(TritonOptions(repository=Path({str(options.repository)!r}), http_port=0, grpc_port=0,
                             metrics_port=0, log_path=Path({str(options.log_path)!r}), exit_timeout_s=3))
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


def count_input() -> InferInput:
    import numpy as np

    tensor = InferInput("count", [1], "INT32")
    tensor.set_data_from_numpy(np.ones(1, dtype=np.int32))
    return tensor


def shared_memory(server: LocalTriton) -> list[Path]:
    return list(Path("/dev/shm").glob(server._shm_prefix + "*"))


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
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
