"""Who leaves, frees what they held: within a second, though the metrics add up to half a second to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.options import ROOT
from local.triton import LocalTriton
from tests.integration.calls import (
    LONG,
    Metrics,
    Stream,
    connect,
    eventually,
    pending,
    request,
    request_rows,
    settled,
    unbatched,
)

pytestmark = pytest.mark.alone

WITHIN_S = 1.5

CLIENT = """
import sys, time
sys.path[:0] = ["client", "."]
import grpc
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tests.integration.calls import LONG, Stream, request
stub = GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
stream = Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started()
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
def stub(triton: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with connect(triton) as stub:
        yield stub


def running(triton: LocalTriton) -> float:
    return Metrics(triton)("triton_chat_requests_running")


def test_a_cancelled_stream_is_freed_within_a_second(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    before = settled(triton)
    stream = Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started()
    eventually(lambda: running(triton) == 1, within=5)
    stream.cancel()
    eventually(lambda: running(triton) == 0, within=WITHIN_S)
    assert stream.wait().code == "CANCELLED"
    grown = settled(triton) - before
    assert grown("triton_chat_requests_total") == grown("triton_chat_requests_total", finish_reason="cancelled") == 1
    assert grown("triton_chat_generation_tokens_total") < LONG["max_tokens"]
    assert Metrics(triton)("triton_chat_kv_cache_usage_ratio") == before("triton_chat_kv_cache_usage_ratio")


def test_a_stream_past_its_deadline_is_freed(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    before = settled(triton)
    call = stub.ModelStreamInfer(iter([request(text_input="Once", sampling_parameters=LONG)]), timeout=0.3)
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        list(call)
    eventually(lambda: running(triton) == 0, within=WITHIN_S)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 1


def test_a_killed_client_is_freed_within_a_second(triton: LocalTriton) -> None:
    before = settled(triton)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, triton.grpc_address], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == "started\n"
        eventually(lambda: running(triton) == 1, within=5)
        client.kill()
    eventually(lambda: running(triton) == 0, within=WITHIN_S)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 1


def test_a_cancelled_batch_does_not_begin_its_waiting_rows(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    before = settled(triton)
    rows = {"text_input": ["Once"] * 64, "sampling_parameters": ['{"max_tokens": 160, "ignore_eos": true}'] * 64}
    first = stub.ModelInfer.future(request_rows("chat_unary", **rows), timeout=60)
    eventually(lambda: running(triton) > 0, within=10)
    others = [stub.ModelInfer.future(request_rows("chat_unary", **rows), timeout=60) for _ in range(2)]
    eventually(lambda: pending(Metrics(triton), "chat_unary") == 1, within=5)  # one is in hand, one is behind it
    for other in others:
        other.cancel()
    assert {tuple(output.shape) for output in first.result().outputs} == {(64, 1)}
    grown = settled(triton) - before
    assert grown("triton_chat_requests_total", finish_reason="length") == 64
    assert grown("triton_chat_generation_tokens_total") == 64 * 160


def test_the_rows_of_a_cancelled_batch_are_freed_within_a_second(
    triton: LocalTriton, stub: GRPCInferenceServiceStub
) -> None:
    before = settled(triton)
    rows = {"text_input": ["Once"] * 8, "sampling_parameters": [json.dumps(LONG)] * 8}
    call = stub.ModelInfer.future(request_rows("chat_unary", **rows))
    eventually(lambda: running(triton) == 8, within=10)
    call.cancel()
    eventually(lambda: running(triton) == 0, within=WITHIN_S)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 8
    assert not list(Path("/dev/shm").glob(f"*_abandoned_{triton.pid}"))


def test_a_cancelled_stream_of_vllm_model_is_freed_within_a_second(
    triton: LocalTriton, stub: GRPCInferenceServiceStub
) -> None:
    before = settled(triton)
    asked = unbatched(request("vllm_model", text_input="Once", sampling_parameters=LONG, stream=True))
    call = stub.ModelStreamInfer(iter([asked]))
    next(call)
    eventually(lambda: running(triton) == 1, within=5)
    call.cancel()
    eventually(lambda: running(triton) == 0, within=WITHIN_S)
    assert (settled(triton) - before)("triton_chat_requests_total", finish_reason="cancelled") == 1


def test_a_cancelled_batch_hangs_nothing(triton: LocalTriton, stub: GRPCInferenceServiceStub) -> None:
    before = settled(triton)
    parameters = ['{"max_tokens": 600, "ignore_eos": true}'] * 4
    call = stub.ModelInfer.future(request_rows("chat_unary", text_input=["Once"] * 4, sampling_parameters=parameters))
    eventually(lambda: running(triton) > 0, within=10)
    call.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        call.result(timeout=1)
    assert (settled(triton) - before)("triton_chat_requests_total") == 4
