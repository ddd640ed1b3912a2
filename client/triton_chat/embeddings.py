"""The wire contract of the Triton model `embeddings` on the client side, and the call of it.

A row a text: the inputs have the shape [rows, 1], the vectors [rows, components].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from triton_chat import wire
from triton_chat.errors import EngineError, InvalidRequestError
from triton_chat.limits import Deadline
from triton_chat.rpc import Rpc, Steps

if TYPE_CHECKING:
    import numpy.typing as npt

Inputs = Sequence[str] | Sequence[Sequence[int]]
"""Texts, or each text as its token ids."""

MAX_ROWS = 64
"""`max_batch_size` of the model."""

TEXT = wire.TensorSpec("text", "BYTES", optional=True)
TOKEN_IDS = wire.TensorSpec("token_ids", "BYTES", optional=True)
DIMENSIONS = wire.TensorSpec("dimensions", "INT32", optional=True)
EMBEDDING = wire.TensorSpec("embedding", "FP32")
NUM_TOKENS = wire.TensorSpec("num_tokens", "INT32")

INPUTS = (TEXT, TOKEN_IDS, DIMENSIONS)
OUTPUTS = (EMBEDDING, NUM_TOKENS)
PARAMETERS = ("truncate_prompt_tokens", "truncation_side")

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResult:
    """Vectors in the order of the inputs."""

    embeddings: npt.NDArray[np.float32]
    """Shape [inputs, components]; each row has the length 1, so that a dot product is the cosine similarity."""
    num_tokens: list[int]
    """Of each input, special tokens included."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of the inputs as one request."""

    request: pb.ModelInferRequest
    first: int
    """Which input its first row is."""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """The server counts the rows of its request; the caller wants to know which input it was."""
        try:
            yield
        except InvalidRequestError as error:
            if error.row is None:
                raise
            raise error.placed(field=error.field, row=self.first + error.row) from error


class EmbedOptions(TypedDict, total=False):
    """Keyword arguments of `embed`; None leaves an option to the server."""

    dimensions: int | None
    """Keep only the first so many components, and give those the length 1 again."""
    truncate_prompt_tokens: int | None
    """Cut longer inputs to so many tokens, special ones included; -1 for the most that the model takes."""
    truncation_side: Literal["left", "right"] | None
    """What is cut off: `right`, the default, keeps the beginning, `left` the end."""


def embed(inputs: Inputs, model: str, options: EmbedOptions, timeout: float) -> Steps[EmbeddingResult]:
    """The vectors of all inputs, in requests one after the other, within `timeout` seconds; see `ChatClient.embed`."""
    deadline = Deadline(timeout)
    parts = []
    for batch in batches(inputs, model, options):
        with batch.errors():
            parts.append((yield from Rpc("ModelInfer", batch.request, read, deadline.left())))
    return joined(parts)


def batches(inputs: Inputs, model: str, options: EmbedOptions) -> list[Batch]:
    """The inputs as requests of at most `MAX_ROWS` rows, and of about the same size.

    Raises:
        TypeError: an unknown keyword.
        InvalidRequestError: no inputs, a single text in place of a list, or something that cannot be sent.
    """
    for name in options.keys() - EmbedOptions.__annotations__.keys():
        raise TypeError(f"embed() has no keyword argument {name!r}")
    if isinstance(inputs, str):
        raise InvalidRequestError("a list of texts is needed, and this is one text", field="inputs")
    if not inputs:
        raise InvalidRequestError("the list is empty; at least one text is needed", field="inputs")
    dimensions = options.get("dimensions")
    if dimensions is not None and not 1 <= dimensions <= _INT32.max:
        raise InvalidRequestError(f"must be at least 1 (got {dimensions})", field="dimensions")
    limit = options.get("truncate_prompt_tokens")
    if limit is not None and (type(limit) is not int or not -1 <= limit <= _INT32.max):
        raise InvalidRequestError(f"must be -1 or a number of tokens (got {limit!r})", field="truncate_prompt_tokens")
    spec, rows = _rows(inputs)
    count = math.ceil(len(rows) / MAX_ROWS)
    bounds = [len(rows) * index // count for index in range(count + 1)]
    return [Batch(_request(model, spec, rows[first:end], options), first) for first, end in pairwise(bounds)]


def read(response: pb.ModelInferResponse) -> EmbeddingResult:
    """The vectors of one response. Raises EngineError: the outputs are not those of an embedding model."""
    with wire.reading("an embedding model"):
        vectors, num_tokens = wire.read_columns(response, OUTPUTS)
        return EmbeddingResult(np.reshape(vectors, (len(num_tokens), -1)), num_tokens)


def joined(parts: Sequence[EmbeddingResult]) -> EmbeddingResult:
    """One result of the parts of a call. Raises EngineError: the model changed in between."""
    if len({part.embeddings.shape[1] for part in parts}) != 1:
        raise EngineError("the vectors of one call differ in their length: was the model changed meanwhile?")
    return EmbeddingResult(
        np.concatenate([part.embeddings for part in parts]), [count for part in parts for count in part.num_tokens]
    )


def _rows(inputs: Inputs) -> tuple[wire.TensorSpec, list[bytes]]:
    if all(isinstance(entry, str) for entry in inputs):
        return TEXT, [wire.encode_text(str(text), TEXT.name, index) for index, text in enumerate(inputs)]
    if any(isinstance(entry, str) for entry in inputs):
        raise InvalidRequestError("either all are texts, or all are lists of token ids", field="inputs")
    return TOKEN_IDS, [wire.dump_json(list(ids), TOKEN_IDS.name, index) for index, ids in enumerate(inputs)]


def _request(model: str, spec: wire.TensorSpec, rows: list[bytes], options: EmbedOptions) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    columns = [(spec, b"".join(map(wire.to_raw, rows)))]
    if (dimensions := options.get("dimensions")) is not None:
        columns.append((DIMENSIONS, np.full(len(rows), dimensions, dtype="<i4").tobytes()))
    for tensor, raw in columns:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(rows), 1])
        message.raw_input_contents.append(raw)
    if (limit := options.get("truncate_prompt_tokens")) is not None:
        message.parameters["truncate_prompt_tokens"].int64_param = limit
    if (side := options.get("truncation_side")) is not None:
        message.parameters["truncation_side"].string_param = side
    return message
