"""The wire contract of the Triton model `tokenizer` on the client side.

One text a request and no batch dimension: each tensor has the shape [1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tritonclient.grpc import service_pb2 as pb

from triton_chat import wire
from triton_chat.errors import InvalidRequestError
from triton_chat.types import Messages, Tokens

NAME = "tokenizer"

MODEL = wire.TensorSpec("model", "BYTES", optional=True)
TOKEN_IDS = wire.TensorSpec("token_ids", "BYTES", optional=True)
INPUTS = (MODEL, wire.MESSAGES, wire.TEXT_INPUT, TOKEN_IDS)
OUTPUTS = (wire.TensorSpec("token_ids", "BYTES"), wire.TEXT_OUTPUT, wire.TensorSpec("max_model_len", "INT32"))
PARAMETERS = (wire.ADD_GENERATION_PROMPT, "add_special_tokens")


def encode_request(
    model: str,
    messages: Messages | None,
    text: str | None,
    add_generation_prompt: bool | None,
    add_special_tokens: bool | None,
) -> pb.ModelInferRequest:
    """From text to token ids.

    Raises:
        InvalidRequestError: not exactly one of messages and text, or something that cannot be sent.
    """
    if (messages is None) == (text is None):
        raise InvalidRequestError("give either messages or a text, and not both")
    given = (
        (wire.MESSAGES, wire.dump_messages(messages))
        if messages is not None
        else (wire.TEXT_INPUT, wire.encode_text(text or "", "the text"))
    )
    values = zip(PARAMETERS, (add_generation_prompt, add_special_tokens), strict=True)
    return _request(model, *given, {name: value for name, value in values if value is not None})


def decode_request(model: str, token_ids: Sequence[int]) -> pb.ModelInferRequest:
    """From token ids to text. Raises InvalidRequestError for ids that are no plain numbers."""
    return _request(model, TOKEN_IDS, wire.dump_json(list(token_ids), TOKEN_IDS.name), {})


def read(response: pb.ModelInferResponse) -> Tokens:
    """Raises EngineError: the outputs are not those of a tokenizer."""
    with wire.reading("a tokenizer"):
        (ids,), (text,), (limit,) = wire.read_columns(response, OUTPUTS)
        return Tokens(tuple(json.loads(ids)), text, limit)


def _request(model: str, spec: wire.TensorSpec, value: bytes, parameters: Mapping[str, bool]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=NAME)
    for tensor, raw in ((MODEL, wire.encode_text(model, MODEL.name)), (spec, value)):
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1])
        message.raw_input_contents.append(wire.to_raw(raw))
    for name, flag in parameters.items():
        message.parameters[name].bool_param = flag
    return message
