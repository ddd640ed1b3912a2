"""A gRPC server that speaks as much KServe v2 as the client uses. What it answers is a function the test gives it.

Its behaviour is that of a real tritonserver where the client can see it: errors found before queueing come as
`error_message` on a stream that ends with OK, the last data response carries `triton_final_response`.
tests/integration/test_cli.py holds it against the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
MODELS = sorted(REPOSITORY.glob("*/config.pbtxt"))
WAIT_S = 10.0
"""How long a test may wait for an event that is sure to come."""

Reply = Callable[["Received"], Iterator[pb.ModelStreamInferResponse]]


@dataclass
class Received:
    """One request as it arrived."""

    message: pb.ModelInferRequest
    context: grpc.ServicerContext
    cancelled: threading.Event = field(default_factory=threading.Event)

    def tensor(self, name: str) -> list[str]:
        """The rows of a BYTES input."""
        for tensor, raw in zip(self.message.inputs, self.message.raw_input_contents, strict=True):
            if tensor.name == name:
                return [row.decode() for row in deserialize_bytes_tensor(raw)]
        return []

    @property
    def metadata(self) -> dict[str, str]:
        return {item.key: item.value for item in self.context.invocation_metadata()}


def infer_response(
    texts: list[str], finish: str = "", tokens: int = 0, logprobs: str = "", **lists: str
) -> pb.ModelInferResponse:
    """Outputs of shape [rows, 1], by tritonclient's own codec; `lists` are others that hold JSON."""
    rows = len(texts)
    columns: dict[str, list[str] | list[int]] = {
        "text_output": texts,
        "finish_reason": [finish] * rows,
        "num_input_tokens": [7] * rows,
        "num_output_tokens": [tokens] * rows,
        "num_cached_tokens": [3] * rows,
        "logprobs": [logprobs] * rows,
        **{name: [value] * rows for name, value in lists.items()},
    }
    return response_of("chat", columns, [rows, 1])


def tokens_response(token_ids: str, text: str, max_model_len: int = 100) -> pb.ModelInferResponse:
    """What the model `tokenizer` answers."""
    columns: dict[str, list[str] | list[int]] = {
        "token_ids": [token_ids], "text_output": [text], "max_model_len": [max_model_len],
    }  # fmt: skip
    return response_of("tokenizer", columns, [1])


def info_response(info: object, max_model_len: int = 100) -> pb.ModelInferResponse:
    """What the model `tokenizer` answers when it is asked about the checkpoint."""
    columns: dict[str, list[str] | list[int]] = {"max_model_len": [max_model_len], "info": [json.dumps(info)]}
    return response_of("tokenizer", columns, [1])


def response_of(model: str, columns: dict[str, list[str] | list[int]], shape: list[int]) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=model, model_version="1")
    for name, values in columns.items():
        if isinstance(values[0], str):
            raw = serialize_byte_tensor(np.array([value.encode() for value in values], dtype=object)).item()
            response.outputs.add(name=name, datatype="BYTES", shape=shape)
        else:
            raw = np.array(values, dtype=np.int32).tobytes()
            response.outputs.add(name=name, datatype="INT32", shape=shape)
        response.raw_output_contents.append(raw)
    return response


def tokenize(received: Received) -> pb.ModelInferResponse:
    """A tokenizer whose tokens are the bytes of the text."""
    if given := received.tensor("token_ids"):
        return tokens_response(given[0], bytes(json.loads(given[0])).decode())
    text = (received.tensor("messages") or received.tensor("text_input"))[0]
    return tokens_response(json.dumps(list(text.encode())), text)


def say(text: str, finish: str = "", tokens: int = 0, logprobs: str = "", **lists: str) -> pb.ModelStreamInferResponse:
    """One response of a stream; with a finish reason it is the last."""
    response = pb.ModelStreamInferResponse(infer_response=infer_response([text], finish, tokens, logprobs, **lists))
    response.infer_response.parameters["triton_final_response"].bool_param = bool(finish)
    return response


def say_calls(*calls: tuple[str, str, str], finish: str = "tool_calls") -> list[pb.ModelStreamInferResponse]:
    """An answer that calls: id, name and arguments of each. The arguments come in pieces, as a model makes them."""
    deltas: list[dict[str, object]] = []
    for index, (identity, name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        deltas.append({"index": index, "id": identity, "type": "function", "function": function})
        pieces = (arguments[:5], arguments[5:])
        deltas += [{"index": index, "function": {"arguments": piece}} for piece in pieces if piece]
    responses = [say("", tokens=at + 1, tool_calls=json.dumps([delta])) for at, delta in enumerate(deltas)]
    return [*responses, say("", finish, len(deltas) + 1)]


def fail(text: str) -> pb.ModelStreamInferResponse:
    """An error as Triton sends it without the header `triton_grpc_error`."""
    return pb.ModelStreamInferResponse(error_message=text)


def repository_config(model: str) -> model_config_pb2.ModelConfig:
    """The config of a model of this project's repository."""
    return text_format.Parse((REPOSITORY / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def echo(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
    """Repeats the prompt or the messages in two responses."""
    text = (received.tensor("messages") or received.tensor("text_input"))[0]
    yield say(text[: len(text) // 2], tokens=1)
    yield say(text[len(text) // 2 :], "stop", tokens=2)


class FakeTriton(GRPCInferenceServiceServicer):
    """The server. `reply` may be replaced at any time; `requests` is what has arrived, `arrived` counts it.

    Args:
        address: where it listens; port 0 means any free one.
        options: of the gRPC server.
    """

    def __init__(self, address: str = "127.0.0.1:0", options: Sequence[tuple[str, int]] = ()) -> None:
        self.reply: Reply = echo
        self.requests: list[Received] = []
        self.arrived = threading.Semaphore(0)
        self.release = threading.Event()
        self.ready = True
        self.stopping = False
        """Refuses to tell of its models, as a real one does while it waits for its last answers."""
        self.states = {"chat": "READY", "broken": "UNAVAILABLE"}
        self.configs = {path.parent.name: repository_config(path.parent.name) for path in MODELS}
        self.configs_asked: list[str] = []
        self.adapters: dict[str, dict[str, str]] | str = {}
        """What the tokenizer tells, or why it does not; asked only where `states` has it."""
        self.times_asked_for_adapters = 0
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(address)
        self.url = f"{address.rpartition(':')[0]}:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Breaks all calls off."""
        stopped = self._server.stop(None)
        self.release.set()
        stopped.wait()

    def drain(self) -> None:
        """Takes no more calls, lets those that run end, and stops."""
        self._server.stop(WAIT_S).wait()

    def next_request(self) -> Received:
        assert self.arrived.acquire(timeout=WAIT_S), "no request has arrived"
        return self.requests[-1]

    def stall(self, received: Received) -> None:
        """Holds a reply until the test ends or the client cancels."""
        while not (self.release.is_set() or received.cancelled.wait(0.01)):
            pass

    def stalls_after(self, *texts: str) -> Reply:
        """A reply that sends some texts and then nothing."""

        def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
            for index, text in enumerate(texts):
                yield say(text, tokens=index + 1)
            self.stall(received)

        return reply

    # The names below are those of the service.

    def ModelStreamInfer(  # noqa: N802
        self, request_iterator: Iterator[pb.ModelInferRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        for message in request_iterator:
            received = self._receive(message, context)
            if message.model_name == "nope":
                yield fail("Request for unknown model: 'nope' is not found")
            else:
                yield from self.reply(received)

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:  # noqa: N802
        if "return_adapters" in request.parameters:
            return self._tell_adapters(request, context)
        received = self._receive(request, context)
        if request.model_name == "tokenizer":
            return tokenize(received)
        rows = received.tensor("messages") or received.tensor("text_input")
        if rows == ["stall"]:
            self.stall(received)
        return infer_response(rows, "stop", 2)

    def _tell_adapters(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.times_asked_for_adapters += 1
        assert (request.model_name, len(request.inputs)) == ("tokenizer", 0)
        if isinstance(self.adapters, str):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.adapters)
        return info_response({"adapters": self.adapters})

    def _receive(self, message: pb.ModelInferRequest, context: grpc.ServicerContext) -> Received:
        received = Received(message, context)
        context.add_callback(received.cancelled.set)
        self.requests.append(received)
        self.arrived.release()
        return received

    def _refuse_if_stopping(self, context: grpc.ServicerContext) -> None:
        if self.stopping:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Server not ready")

    def ServerLive(self, request: object, context: object) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: object, context: object) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, context: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        self._refuse_if_stopping(context)
        return pb.ModelReadyResponse(ready=self.ready and request.name == "chat")

    def ServerMetadata(self, request: object, context: object) -> pb.ServerMetadataResponse:  # noqa: N802
        return pb.ServerMetadataResponse(name="fake", version="1.0", extensions=["parameters"])

    def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: grpc.ServicerContext
    ) -> pb.ModelConfigResponse:
        self.configs_asked.append(request.name)
        if request.name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return pb.ModelConfigResponse(config=self.configs[request.name])

    def RepositoryIndex(self, request: object, context: grpc.ServicerContext) -> pb.RepositoryIndexResponse:  # noqa: N802
        self._refuse_if_stopping(context)
        response = pb.RepositoryIndexResponse()
        for name, state in self.states.items():
            response.models.add(name=name, version="1", state=state, reason="no weights" if name == "broken" else "")
        return response
