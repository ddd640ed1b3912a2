"""SIGTERM: refuse what is new, let what runs finish within the drain time, end the rest, and exit with 0."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from local.readiness import models_in
from local.triton import LocalTriton
from tests.integration import engines
from tests.integration.calls import (
    LONG,
    Metrics,
    Stream,
    ask,
    connect,
    eventually,
    infer,
    request,
    request_rows,
    stubs_of,
    unbatched,
)
from tests.integration.servers import ServerFactory
from tests.integration.test_bad_input import raw
from triton_chat import ChatClient, InvalidRequestError

pytestmark = pytest.mark.alone

DRAIN_S = 2.0
EXIT_S = 9
"""tritonserver's own limit. After the last stream it takes 2 to 3 seconds more to unload and leave."""


@pytest.fixture
def exit_s(engine_name: str) -> int:
    """With vLLM it takes 6 to 7 seconds, on slow or busy processors longer."""
    return EXIT_S if engine_name == engines.NATIVE else 3 * EXIT_S


def http_ready(server: LocalTriton) -> bool:
    try:
        with urllib.request.urlopen(server.http_url + "/v2/health/ready", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def assert_nothing_left(server: LocalTriton, stubs: list[int]) -> None:
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in [server.pid, *stubs]), within=5)
    assert list(Path("/dev/shm").glob(server._shm_prefix + "*")) == []


def test_sigterm_lets_short_streams_finish_and_ends_long_ones_at_the_drain_time(
    start_triton: ServerFactory, exit_s: int
) -> None:
    engine = {"threads": 1, "max_sequences": 13, "max_step_tokens": 64, "drain_seconds": DRAIN_S}
    server = start_triton(engine, exit_timeout_s=exit_s)
    with connect(server) as stub:
        ask(stub, request(text_input="warm", sampling_parameters={"max_tokens": 1}))
        eventually(lambda: http_ready(server), within=5)
        stubs = stubs_of(server)
        assert len(stubs) == len(models_in(server.options.repository))
        # So many that 2000 tokens of each take far longer than the drain time.
        long = [
            Stream(stub, request(text_input="Once", sampling_parameters=LONG), with_status=True).started()
            for _ in range(12)
        ]
        short = Stream(stub, request(text_input="Once", sampling_parameters={**LONG, "max_tokens": 60})).started()
        waiting = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)) for _ in range(3)]
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)

        eventually(lambda: not http_ready(server), within=1)
        eventually(lambda: ask(stub, request(text_input="late", sampling_parameters={"max_tokens": 1})).error, within=1)
        assert infer(stub, request("chat_unary", text_input="late")).code in ("UNAVAILABLE", "NOT_FOUND")

        for stream in waiting:
            assert "shutting down" in stream.wait(DRAIN_S + 5).error  # one may have had a place until then
        assert short.wait().last.finish_reason == "length"
        assert short.ended_at - began < DRAIN_S
        for stream in long:
            cut = stream.wait()
            assert (cut.code, cut.error) == ("UNAVAILABLE", "the server is shutting down [code=stopping]")
            assert cut.last.finish_reason == ""
            assert DRAIN_S - 0.5 < stream.ended_at - began < DRAIN_S + 1.5
        eventually(lambda: server.poll() is not None, within=exit_s)
    assert server.poll() == 0
    assert time.monotonic() - began < exit_s
    assert_nothing_left(server, stubs)


def test_an_idle_server_is_gone_within_seconds(start_triton: ServerFactory, exit_s: int) -> None:
    server = start_triton({"threads": 1, "max_sequences": 1, "max_step_tokens": 16}, exit_timeout_s=exit_s)
    stubs = stubs_of(server)
    os.kill(server.pid, signal.SIGTERM)
    eventually(lambda: server.poll() is not None, within=exit_s)
    assert server.poll() == 0  # and not by the end of tritonserver's patience
    assert_nothing_left(server, stubs)


def test_who_has_left_does_not_hold_up_a_stop(start_triton: ServerFactory) -> None:
    """What runs for him in `chat` ends with him, so there is nothing to wait for, however long the drain time."""
    server = start_triton({"threads": 1, "drain_seconds": 30.0}, exit_timeout_s=30)
    rows = {"text_input": ["Once"] * 8, "sampling_parameters": [json.dumps(LONG)] * 8}
    streamed = unbatched(request("vllm_model", text_input="Once", sampling_parameters=LONG, stream=True))
    with connect(server) as stub:
        stream = stub.ModelStreamInfer(iter([streamed]))
        next(stream)
        whole = stub.ModelInfer.future(request_rows("chat_unary", **rows))
        eventually(lambda: Metrics(server)("triton_chat_requests_running") == 9, within=10)
        stream.cancel()
        whole.cancel()
        refused = raw("text_input", "BYTES", [1, 1], b"\1", "chat_unary")
        assert infer(stub, refused).code == "INVALID_ARGUMENT"
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < EXIT_S


def test_vllm_model_hears_of_a_stop_in_the_middle_of_an_answer(start_triton: ServerFactory) -> None:
    server = start_triton({"threads": 1, "drain_seconds": 0.5}, exit_timeout_s=EXIT_S)
    asked = unbatched(request("vllm_model", text_input="Once", sampling_parameters=LONG, stream=True))
    with connect(server) as stub:
        call = stub.ModelStreamInfer(iter([asked]))
        next(call)
        os.kill(server.pid, signal.SIGTERM)
        responses = list(call)
        assert responses[-1].error_message == "the server is shutting down [code=stopping]"
        eventually(lambda: server.poll() is not None, within=EXIT_S)
    assert server.poll() == 0


def test_requests_that_were_refused_do_not_keep_the_model(start_triton: ServerFactory) -> None:
    server = start_triton({"threads": 1}, models=("chat",), exit_timeout_s=EXIT_S)
    with ChatClient(server.grpc_address) as client:
        for _ in range(300):
            with pytest.raises(InvalidRequestError, match="NUL"):
                client.generate(prompt="\0")
    assert server.stop() == 0  # and not by the end of tritonserver's patience
