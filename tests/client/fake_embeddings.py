"""A fake server with an embedding model. tests/integration/test_embeddings.py holds the client against a real one."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from chat_engine.errors import ContextLengthError, to_wire
from tests.client.fake_server import FakeTriton, Received

WIDTH = 4
TOO_LONG = "99 tokens given; this model's maximum context length is 9 tokens"

Vectors = Callable[[list[str]], np.ndarray]


def by_length(rows: list[str]) -> np.ndarray:
    """The vector of a text tells its length, and no two are parallel."""
    vectors = np.array([[1, len(row), 0, 0] for row in rows], dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vectors_response(vectors: np.ndarray, tokens: list[int]) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="embeddings", model_version="1")
    response.outputs.add(name="embedding", datatype="FP32", shape=vectors.shape)
    response.outputs.add(name="num_tokens", datatype="INT32", shape=[len(tokens), 1])
    response.raw_output_contents.append(vectors.astype("<f4").tobytes())
    response.raw_output_contents.append(np.array(tokens, dtype="<i4").tobytes())
    return response


class FakeEmbeddings(FakeTriton):
    """Its model is `embeddings`. A row `bad` is refused as the real model refuses one; `stall` holds the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors: Vectors = by_length

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:  # noqa: N802
        received = self._receive(request, context)
        if request.model_name != "embeddings":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}' is not found")
        rows = received.tensor("text") or received.tensor("token_ids")
        if "bad" in rows:
            refusal = ContextLengthError(TOO_LONG, field="text", row=rows.index("bad"))
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, to_wire(refusal))
        if "stall" in rows:
            self.stall(received)
        width = dimensions_of(received)
        return vectors_response(self.vectors(rows)[:, :width], [len(row) for row in rows])


def dimensions_of(received: Received) -> int | None:
    """What all rows ask for."""
    for tensor, raw in zip(received.message.inputs, received.message.raw_input_contents, strict=True):
        if tensor.name == "dimensions":
            (dimensions,) = set(np.frombuffer(raw, dtype="<i4").tolist())
            return int(dimensions)
    return None
