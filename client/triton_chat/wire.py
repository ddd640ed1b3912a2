"""The wire contract of `chat` and `chat_unary` on the client side: tensor names and codecs, once.

The codecs serve the other models too, whose contracts stand in modules of their own.

The same contract stands in the models' `config.pbtxt` and `model.py`; a test holds the three together.
Sources: KServe predict protocol v2, Triton's `binary tensor data` layout of BYTES (a little-endian uint32 length before
each element), Triton's docs on decoupled models (`triton_final_response`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tritonclient.grpc import InferInput, InferResult, service_pb2

from triton_chat.errors import EngineError, InvalidRequestError, from_text
from triton_chat.types import (
    CHAT_PARAMETERS,
    Call,
    ChatEvent,
    ChatRequest,
    Messages,
    PromptAlternative,
    PromptLogprob,
    SamplingParams,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    conversation,
)

if TYPE_CHECKING:
    import numpy.typing as npt

Datatype = Literal["BYTES", "BOOL", "INT32", "FP32"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of one element per row: shape [rows, 1] on the wire. Vectors have a row of elements instead."""

    name: str
    datatype: Datatype
    optional: bool = False


MESSAGES = TensorSpec("messages", "BYTES", optional=True)
TEXT_INPUT = TensorSpec("text_input", "BYTES", optional=True)
PROMPT_TOKEN_IDS = TensorSpec("prompt_token_ids", "BYTES", optional=True)
SAMPLING = TensorSpec("sampling_parameters", "BYTES", optional=True)
CHAT = TensorSpec("chat_parameters", "BYTES", optional=True)
ADAPTER = TensorSpec("adapter", "BYTES", optional=True)
"""Empty: the model itself."""
STREAM = TensorSpec("stream", "BOOL", optional=True)
EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "BOOL", optional=True)

TEXT_OUTPUT = TensorSpec("text_output", "BYTES")
REASONING_OUTPUT = TensorSpec("reasoning_output", "BYTES")
TOOL_CALLS = TensorSpec("tool_calls", "BYTES")
FINISH_REASON = TensorSpec("finish_reason", "BYTES")
NUM_INPUT_TOKENS = TensorSpec("num_input_tokens", "INT32")
NUM_OUTPUT_TOKENS = TensorSpec("num_output_tokens", "INT32")
NUM_CACHED_TOKENS = TensorSpec("num_cached_tokens", "INT32")
LOGPROBS = TensorSpec("logprobs", "BYTES")
PROMPT_LOGPROBS = TensorSpec("prompt_logprobs", "BYTES")
TOKEN_IDS = TensorSpec("token_ids", "BYTES")
PROMPT_TOKEN_IDS_OUTPUT = TensorSpec("prompt_token_ids", "BYTES")
NUM_REASONING_TOKENS = TensorSpec("num_reasoning_tokens", "INT32")
NEWER = {REASONING_OUTPUT, TOOL_CALLS}
"""Outputs that an older server lacks."""
SPARSE = {PROMPT_LOGPROBS, TOKEN_IDS, PROMPT_TOKEN_IDS_OUTPUT, NUM_REASONING_TOKENS, *NEWER}
"""Outputs that a response may lack: `chat` leaves most of them out where they are empty."""

INPUTS: tuple[TensorSpec, ...] = (
    MESSAGES,
    TEXT_INPUT,
    PROMPT_TOKEN_IDS,
    SAMPLING,
    CHAT,
    ADAPTER,
    STREAM,
    EXCLUDE_INPUT,
)
OUTPUTS: tuple[TensorSpec, ...] = (
    TEXT_OUTPUT,
    REASONING_OUTPUT,
    TOOL_CALLS,
    FINISH_REASON,
    NUM_INPUT_TOKENS,
    NUM_OUTPUT_TOKENS,
    NUM_CACHED_TOKENS,
    LOGPROBS,
    PROMPT_LOGPROBS,
    TOKEN_IDS,
    PROMPT_TOKEN_IDS_OUTPUT,
    NUM_REASONING_TOKENS,
)
SAMPLING_PARAMETERS: tuple[str, ...] = tuple(field.name for field in fields(SamplingParams))

FINAL_RESPONSE = "triton_final_response"
STATUS_METADATA = (("triton_grpc_error", "true"),)
"""Request header: end a failed stream with a gRPC status instead of a bare text (Triton 24.09 and newer).

Off by default: under load, tritonserver 2.51 (24.10) dies with a segmentation fault when a stream fails after its first
response, or when streams fail while others are cancelled. Newer servers guard against it.
"""

Value = bytes | bool


def encode(request: ChatRequest) -> list[InferInput]:
    """The inputs of one request, each of shape [1, 1].

    Raises:
        InvalidRequestError: a value that JSON or UTF-8 cannot carry.
    """
    return encode_rows([request])


def encode_rows(requests: Sequence[ChatRequest]) -> list[InferInput]:
    """The inputs of a batch, each of shape [rows, 1]; for `chat_unary`.

    Raises:
        InvalidRequestError: no rows, or rows with different kinds of prompt.
    """
    inputs = []
    for spec, values in _columns(requests):
        dtype = np.bool_ if spec.datatype == "BOOL" else np.object_
        tensor = InferInput(spec.name, [len(values), 1], spec.datatype)
        inputs.append(tensor.set_data_from_numpy(np.array(values, dtype=dtype).reshape(-1, 1)))
    return inputs


def infer_request(call: Call, rows: Sequence[ChatRequest] | None = None) -> service_pb2.ModelInferRequest:
    """The protobuf of a call; `rows` in place of its single request make a batch."""
    message = service_pb2.ModelInferRequest(model_name=call.model, id=call.request_id)
    if call.priority is not None:
        message.parameters["priority"].uint64_param = call.priority
    for spec, values in _columns(rows if rows is not None else [call.request]):
        message.inputs.add(name=spec.name, datatype=spec.datatype, shape=[len(values), 1])
        message.raw_input_contents.append(b"".join(map(to_raw, values)))
    return message


def decode(result: InferResult | service_pb2.ModelInferResponse) -> ChatEvent:
    """The event in a response of one row.

    Raises:
        EngineError: the outputs are not those of a chat model.
    """
    events = decode_rows(result)
    if len(events) != 1:
        raise EngineError(f"expected one row in the response, got {len(events)}")
    return events[0]


def decode_rows(result: InferResult | service_pb2.ModelInferResponse) -> list[ChatEvent]:
    """One event per row of a response.

    Raises:
        EngineError: the outputs are not those of a chat model.
    """
    response = result.get_response() if isinstance(result, InferResult) else result
    with reading("a chat model"):
        there = {tensor.name for tensor in response.outputs}
        found = [spec for spec in OUTPUTS if spec not in SPARSE or spec.name in there]
        columns = dict(zip(found, read_columns(response, found), strict=True))
        rows = len(columns[TEXT_OUTPUT])
        return [_event({spec: column[row] for spec, column in columns.items()}) for row in range(rows)]


def read_columns(response: service_pb2.ModelInferResponse, outputs: Sequence[TensorSpec]) -> list[Any]:
    """The elements of each output, flat, in the order of `outputs`; to be called in `reading`."""
    raw = {tensor.name: data for tensor, data in zip(response.outputs, response.raw_output_contents, strict=False)}
    return [_READERS[spec.datatype](raw[spec.name]) for spec in outputs]


@contextmanager
def reading(kind: str) -> Iterator[None]:
    """What is wrong with a response becomes an EngineError."""
    try:
        yield
    except KeyError as error:
        raise EngineError(f"the response has no output {error}: is this {kind}?") from error
    except (struct.error, TypeError, ValueError) as error:
        raise EngineError(f"the response cannot be read: {error}") from error


def read_stream_response(response: service_pb2.ModelStreamInferResponse) -> tuple[ChatEvent | None, bool]:
    """The event in a stream response, if it has one, and whether it is the last.

    An empty last response, which a server may send after `triton_enable_empty_final_response`, has no event.

    Raises:
        TritonChatError: what the response reports.
    """
    if response.error_message:
        raise from_text(response.error_message)
    inner = response.infer_response
    final = bool(inner.parameters[FINAL_RESPONSE].bool_param) if FINAL_RESPONSE in inner.parameters else False
    return (decode(inner) if inner.outputs else None), final


def dump_json(value: object, field: str, row: int | None = None) -> bytes:
    """UTF-8 JSON; `field` and `row` are for the error.

    Raises:
        InvalidRequestError: NaN or infinity, a lone surrogate, or a type that JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError("contains text that is not valid Unicode", field=field, row=row) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"cannot be written as JSON: {error}", field=field, row=row) from error


def _columns(requests: Sequence[ChatRequest]) -> list[tuple[TensorSpec, list[Value]]]:
    """Each input that is needed, with its value of every row. An input left out has its default on the server."""
    if not requests:
        raise InvalidRequestError("a batch needs at least one conversation")
    columns: list[tuple[TensorSpec, list[Value]]] = [_prompts(requests)]
    for spec, given in ((SAMPLING, _sampling_parameters), (CHAT, _chat_parameters)):
        rows = [given(request) for request in requests]
        if any(rows):
            columns.append((spec, [dump_json(row, spec.name) for row in rows]))
    if any(request.adapter for request in requests):
        columns.append((ADAPTER, [encode_text(request.adapter or "", ADAPTER.name) for request in requests]))
    if not all(request.stream for request in requests):
        columns.append((STREAM, [request.stream for request in requests]))
    if not all(request.exclude_input_in_output for request in requests):
        columns.append((EXCLUDE_INPUT, [request.exclude_input_in_output for request in requests]))
    return columns


def _prompts(requests: Sequence[ChatRequest]) -> tuple[TensorSpec, list[Value]]:
    rows = [_prompt(request) for request in requests]
    spec = rows[0][0]
    if any(other is not spec for other, _ in rows):
        raise InvalidRequestError("in one batch, every row has the same kind of prompt: messages, text or token ids")
    return spec, [value for _, value in rows]


def _prompt(request: ChatRequest) -> tuple[TensorSpec, Value]:
    if request.messages is not None:
        return MESSAGES, dump_messages(request.messages)
    if request.prompt is not None:
        return TEXT_INPUT, encode_text(request.prompt, TEXT_INPUT.name)
    assert request.prompt_token_ids is not None  # ChatRequest has one of the three
    return PROMPT_TOKEN_IDS, dump_json(list(request.prompt_token_ids), "prompt_token_ids")


def _sampling_parameters(request: ChatRequest) -> dict[str, Any]:
    return request.sampling.to_dict()


def _chat_parameters(request: ChatRequest) -> dict[str, Any]:
    given = {name: getattr(request, name) for name in CHAT_PARAMETERS}
    return {name: value for name, value in given.items() if value is not None}


def dump_messages(messages: Messages) -> bytes:
    """A conversation as UTF-8 JSON. Raises InvalidRequestError, see `dump_json`."""
    return dump_json([dict(message) for message in conversation(messages)], "messages")


def encode_text(text: str, field: str, row: int | None = None) -> bytes:
    """UTF-8; `field` and `row` are for the error. Raises InvalidRequestError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError("contains text that is not valid Unicode", field=field, row=row) from error


def to_raw(value: Value) -> bytes:
    """One element of a tensor, in Triton's binary layout."""
    if isinstance(value, bool):
        return b"\x01" if value else b"\x00"
    return struct.pack("<I", len(value)) + value


def _read_bytes(raw: bytes) -> list[str]:
    texts, offset = [], 0
    while offset < len(raw):
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if offset + length > len(raw):
            raise ValueError("a BYTES tensor ends in the middle of an element")
        texts.append(raw[offset : offset + length].decode())
        offset += length
    return texts


def _read_int32(raw: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(raw) // 4}i", raw))


def _read_fp32(raw: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)  # a copy, which may be written to


_READERS: dict[Datatype, Callable[[bytes], Any]] = {"BYTES": _read_bytes, "INT32": _read_int32, "FP32": _read_fp32}


def _event(row: Mapping[TensorSpec, Any]) -> ChatEvent:
    """The outputs of one row; those in JSON are empty where there is nothing."""

    def entries(spec: TensorSpec) -> Any:
        return json.loads(text) if (text := row.get(spec)) else ()

    return ChatEvent(
        row[TEXT_OUTPUT],
        row[FINISH_REASON],
        row[NUM_INPUT_TOKENS],
        row[NUM_OUTPUT_TOKENS],
        row[NUM_CACHED_TOKENS],
        tuple(map(_token_logprob, entries(LOGPROBS))),
        tuple(map(_prompt_logprob, entries(PROMPT_LOGPROBS))),
        tuple(entries(TOKEN_IDS)),
        tuple(entries(PROMPT_TOKEN_IDS_OUTPUT)),
        row.get(REASONING_OUTPUT, ""),
        tuple(map(_tool_call, entries(TOOL_CALLS))),
        row.get(NUM_REASONING_TOKENS, 0),
    )


def _tool_call(entry: dict[str, Any]) -> ToolCallDelta:
    function = entry["function"]
    return ToolCallDelta(
        int(entry["index"]), entry.get("id", ""), function.get("name", ""), function.get("arguments", "")
    )


def _token_logprob(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple(TopLogprob(**_logprob_fields(alternative)) for alternative in entry.get("top_logprobs") or ())
    return TokenLogprob(**_logprob_fields(entry), top_logprobs=top)


def _prompt_logprob(entry: dict[str, Any]) -> PromptLogprob:
    top = tuple(
        PromptAlternative(**_logprob_fields(alternative), token_id=int(alternative["token_id"]))
        for alternative in entry["top_logprobs"]
    )
    first = entry["logprob"] is None
    fields_ = {**_logprob_fields({**entry, "logprob": 0.0}), "logprob": None} if first else _logprob_fields(entry)
    return PromptLogprob(**fields_, token_id=int(entry["token_id"]), rank=entry["rank"], top_logprobs=top)


def _logprob_fields(entry: dict[str, Any]) -> dict[str, Any]:
    token_bytes = entry.get("bytes")
    return {
        "token": str(entry["token"]),
        "logprob": float(entry["logprob"]),
        "bytes": None if token_bytes is None else tuple(token_bytes),
    }
