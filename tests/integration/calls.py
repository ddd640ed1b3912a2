"""Calls to a real server over the wire itself, without this project's client, and what its metrics say."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from local.options import DEFAULT_MODEL
from local.triton import LocalTriton

VOCAB_SIZE: int = json.loads((DEFAULT_MODEL / "config.json").read_text(encoding="utf-8"))["vocab_size"]
"""Of models/tiny-chat: no token has this id."""

LONG = {"max_tokens": 2000, "ignore_eos": True, "temperature": 0}
"""Seconds of work for models/tiny-chat."""

WITH_STATUS = (("triton_grpc_error", "true"),)
"""Asks Triton to end a stream with a gRPC status; without it an error is a text. tritonserver 2.51 crashes now and
then when streams fail fast in that mode, so few tests use it."""

CALL_S = 60.0
_LISTS = (
    "tool_calls",
    "logprobs",
    "prompt_logprobs",
    "token_ids",
    "prompt_token_ids",
)  # outputs that hold JSON, or nothing


@dataclass(frozen=True)
class Answer:
    """One response, or one row of it."""

    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    logprobs: list[dict[str, Any]]
    prompt_logprobs: list[dict[str, Any]]
    token_ids: list[int]
    prompt_token_ids: list[int]
    num_reasoning_tokens: int = 0
    is_final: bool = False


@dataclass
class Result:
    """All that came back for one request, in order; `code` and `error` where it failed."""

    answers: list[Answer] = field(default_factory=list)
    error: str = ""
    code: str = ""

    @property
    def text(self) -> str:
        return "".join(answer.text for answer in self.answers)

    @property
    def last(self) -> Answer:
        return self.answers[-1]


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def request(
    model: str = "chat",
    *,
    parameters: Mapping[str, object] | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    **inputs: object,
) -> pb.ModelInferRequest:
    """One row. Whatever is not text, bytes or bool becomes JSON; `parameters` are Triton's scalars."""
    return request_rows(
        model,
        parameters=parameters,
        priority=priority,
        timeout_s=timeout_s,
        **{name: [value] for name, value in inputs.items()},
    )


def request_rows(
    model: str,
    *,
    parameters: Mapping[str, object] | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    **inputs: list[Any],
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    for name, values in inputs.items():
        datatype = "BOOL" if isinstance(values[0], bool) else "BYTES"
        add_input(message, name, datatype, [len(values), 1], b"".join(map(_raw, values)))
    for name, value in (parameters or {}).items():
        setattr(message.parameters[name], _PARAMETER_FIELDS[type(value)], value)
    if priority is not None:
        message.parameters["priority"].uint64_param = priority
    if timeout_s is not None:
        message.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    return message


def unbatched(message: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """For a model without a batch dimension: shapes of `[1]`."""
    for tensor in message.inputs:
        tensor.shape[:] = tensor.shape[1:]
    return message


def add_input(message: pb.ModelInferRequest, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)


_PARAMETER_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def _raw(value: object) -> bytes:
    if isinstance(value, bool):
        return b"\x01" if value else b"\x00"
    if not isinstance(value, str | bytes):
        value = json.dumps(value)
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<I", len(raw)) + raw


@contextmanager
def connect(server: LocalTriton) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield GRPCInferenceServiceStub(channel)


class Stream:
    """One streaming call, read by a thread of its own."""

    def __init__(
        self, stub: GRPCInferenceServiceStub, message: pb.ModelInferRequest, with_status: bool = False
    ) -> None:
        self.result = Result()
        self.ended_at = 0.0
        self._first = threading.Event()
        self._call = stub.ModelStreamInfer(
            iter([message]), timeout=CALL_S, metadata=WITH_STATUS if with_status else None
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def started(self) -> Stream:
        """Waits for the first answer."""
        assert self._first.wait(CALL_S), "no answer"
        assert self.result.answers, self.result
        return self

    def wait(self, within: float = CALL_S) -> Result:
        """Waits for the end."""
        self._reader.join(within)
        assert self.is_over, f"the stream hangs after {len(self.result.answers)} answers"
        return self.result

    @property
    def is_over(self) -> bool:
        return not self._reader.is_alive()

    def cancel(self) -> None:
        self._call.cancel()

    def _read(self) -> None:
        try:
            for response in self._call:
                _collect(self.result, response)
                self._first.set()
        except grpc.RpcError as error:
            self.result.code, self.result.error = error.code().name, error.details() or ""
        self.ended_at = time.monotonic()
        self._first.set()


def ask(stub: GRPCInferenceServiceStub, message: pb.ModelInferRequest) -> Result:
    return Stream(stub, message).wait()


def infer(stub: GRPCInferenceServiceStub, message: pb.ModelInferRequest) -> Result:
    """A plain inference request; an answer a row."""
    try:
        return Result(_answers(stub.ModelInfer(message, timeout=CALL_S)))
    except grpc.RpcError as error:
        return Result(code=error.code().name, error=error.details() or "")


async def ask_all(server: LocalTriton, messages: Iterable[pb.ModelInferRequest]) -> list[Result]:
    """All at the same time, each on a stream of its own."""
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = GRPCInferenceServiceStub(channel)

        async def one(message: pb.ModelInferRequest) -> Result:
            result = Result()
            async for response in stub.ModelStreamInfer(iter([message]), timeout=CALL_S):
                _collect(result, response)
            return result

        return await asyncio.gather(*map(one, messages))


def post(url: str, body: object) -> tuple[int, str]:
    """HTTP status and body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, raw), timeout=CALL_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _collect(result: Result, response: pb.ModelStreamInferResponse) -> None:
    assert not result.error, "something came after an error"
    if response.error_message:
        result.error = response.error_message
        return
    result.answers += _answers(response.infer_response)


def _answers(response: pb.ModelInferResponse) -> list[Answer]:
    names = [output.name for output in response.outputs]
    columns = [_column(o.datatype, raw) for o, raw in zip(response.outputs, response.raw_output_contents, strict=True)]
    final = response.parameters["triton_final_response"].bool_param
    return [_answer(dict(zip(names, row, strict=True)), final) for row in zip(*columns, strict=True)]


def _answer(row: dict[str, Any], is_final: bool) -> Answer:
    lists = {name: json.loads(row.pop(name, "") or "[]") for name in _LISTS}
    return Answer(text=row.pop("text_output"), reasoning=row.pop("reasoning_output"), is_final=is_final, **lists, **row)


def _column(datatype: str, raw: bytes) -> list[Any]:
    if datatype == "INT32":
        return list(struct.unpack(f"<{len(raw) // 4}i", raw))
    assert datatype == "BYTES"
    texts = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts


class Metrics:
    """What a server's metrics page says now."""

    def __init__(self, server: LocalTriton) -> None:
        with urllib.request.urlopen(server.metrics_url, timeout=CALL_S) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        self.types = {family.name: family.type for family in families}
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum over the samples with these labels; of model `chat`, where they name no other."""
        wanted = {"model": "chat", **labels}
        return sum(s.value for s in self.samples if s.name == name and wanted.items() <= s.labels.items())

    def __sub__(self, earlier: Metrics) -> Callable[..., float]:
        """How much each has grown."""
        return lambda name, **labels: self(name, **labels) - earlier(name, **labels)


def settled(server: LocalTriton) -> Metrics:
    """The metrics once nothing runs and nothing is left to report."""
    counters = ("triton_chat_engine_steps_total", "triton_chat_requests_total")

    def quiet(metrics: Metrics) -> bool:
        return not metrics("triton_chat_requests_running") + metrics("triton_chat_requests_waiting") + pending(metrics)

    last, since = Metrics(server), time.monotonic()

    def unchanged() -> bool:
        nonlocal last, since
        now = Metrics(server)
        if not quiet(now) or any(now(name) != last(name) for name in counters):
            since = time.monotonic()
        last = now
        return time.monotonic() - since > 0.7  # the reporter's interval is 0.5

    eventually(unchanged, within=30)
    return last


def pending(metrics: Metrics, model: str = "chat") -> float:
    """Requests in Triton's own queue."""
    return metrics("nv_inference_pending_request_count", model=model)


def eventually(check: Callable[[], object], within: float) -> float:
    """Waits until `check` is true; returns how many seconds that took."""
    began = time.monotonic()
    while not check():
        assert time.monotonic() - began < within, f"not within {within} s"
        time.sleep(0.01)
    return time.monotonic() - began


def stubs_of(server: LocalTriton) -> list[int]:
    """The processes of its models."""
    tasks = Path(f"/proc/{server.server_pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def stub_of(server: LocalTriton, model: str) -> int:
    """The process of a model."""
    ending = f"/{model}/1/model.py".encode()
    (pid,) = [pid for pid in stubs_of(server) if ending in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid
