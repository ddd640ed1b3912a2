"""What a stranger on the network may not ask of tritonserver, over HTTP and gRPC."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.triton import LocalTriton
from tests.integration.calls import ask, connect, request

CLOSED_HTTP = {
    "v2/systemsharedmemory/status": None,
    "v2/systemsharedmemory/region/mine/register": {"key": "/mine", "offset": 0, "byte_size": 64},
    "v2/systemsharedmemory/unregister": {},
    "v2/cudasharedmemory/status": None,
    "v2/cudasharedmemory/region/mine/register": {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 64},
    "v2/trace/setting": {"trace_file": "/tmp/trace.json", "trace_level": ["TIMESTAMPS"]},
    "v2/models/chat/trace/setting": {"trace_file": "/tmp/trace.json"},
    "v2/logging": {"log_file": "/tmp/log.txt"},
}
CLOSED_GRPC: dict[str, tuple[Callable[[GRPCInferenceServiceStub], object], object]] = {
    "SystemSharedMemoryStatus": (lambda stub: stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest()),
    "SystemSharedMemoryRegister": (
        lambda stub: stub.SystemSharedMemoryRegister,
        pb.SystemSharedMemoryRegisterRequest(name="mine", key="/mine", byte_size=64),
    ),
    "CudaSharedMemoryRegister": (
        lambda stub: stub.CudaSharedMemoryRegister,
        pb.CudaSharedMemoryRegisterRequest(name="mine", byte_size=64),
    ),
    "TraceSetting": (lambda stub: stub.TraceSetting, pb.TraceSettingRequest()),
    "LogSettings": (lambda stub: stub.LogSettings, pb.LogSettingsRequest()),
}


def http(triton: LocalTriton, path: str, body: object | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{triton.http_url}/{path}", data), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("path", CLOSED_HTTP)
def test_closed_over_http(triton: LocalTriton, path: str) -> None:
    status, text = http(triton, path, CLOSED_HTTP[path])
    assert (status, "This API is restricted" in text) == (403, True), text


@pytest.mark.parametrize("name", CLOSED_GRPC)
def test_closed_over_grpc(triton: LocalTriton, name: str) -> None:
    method, message = CLOSED_GRPC[name]
    with connect(triton) as stub, pytest.raises(grpc.RpcError) as caught:
        method(stub)(message, timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "This protocol is restricted" in caught.value.details()


@pytest.mark.parametrize("what", ["load", "unload"])
def test_no_model_is_loaded_or_unloaded(triton: LocalTriton, what: str) -> None:
    status, text = http(triton, f"v2/repository/models/chat/{what}", {})
    assert (status, "explicit model load / unload is not allowed" in text) == (503, True), text
    with connect(triton) as stub:
        method, message = {
            "load": (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="chat")),
            "unload": (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="chat")),
        }[what]
        with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed"):
            method(message, timeout=5)


@pytest.mark.parametrize("path", ["v2", "v2/health/live", "v2/health/ready", "v2/models/chat", "v2/models/chat/config"])
def test_open_over_http(triton: LocalTriton, path: str) -> None:
    assert http(triton, path)[0] == 200


def test_open_over_grpc(triton: LocalTriton) -> None:
    with connect(triton) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ModelMetadata(pb.ModelMetadataRequest(name="chat")).name == "chat"
        assert {model.name for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models} >= {"chat"}
        assert ask(stub, request(text_input="Once", sampling_parameters={"max_tokens": 2})).last.num_output_tokens == 2
