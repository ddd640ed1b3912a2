"""The wire contract of the Triton model `tokenizer` on the client side, and the calls of it.

One text a request and no batch dimension: each tensor has the shape [1].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypedDict

from tritonclient.grpc import service_pb2 as pb

from triton_chat import wire
from triton_chat.errors import InvalidRequestError
from triton_chat.rpc import Rpc
from triton_chat.types import AdapterInfo, Messages, TokenizerInfo, Tokens, Tool, ToolChoice

NAME = "tokenizer"

MODEL = wire.TensorSpec("model", "BYTES", optional=True)
TOKEN_IDS = wire.TensorSpec("token_ids", "BYTES", optional=True)
INPUTS = (MODEL, wire.MESSAGES, wire.TEXT_INPUT, TOKEN_IDS, wire.CHAT)
TOKEN_STRS = wire.TensorSpec("token_strs", "BYTES")
"""A JSON array, empty where it is not asked for."""
INFO = wire.TensorSpec("info", "BYTES")
"""A JSON object, empty where it is not asked for."""
TOKENS = (wire.TensorSpec("token_ids", "BYTES"), wire.TEXT_OUTPUT, wire.TensorSpec("max_model_len", "INT32"))
OUTPUTS = (*TOKENS, TOKEN_STRS, INFO)
RETURN_NAMES = "return_token_strs"
RETURN_INFO = "return_info"
RETURN_ADAPTERS = "return_adapters"
PARAMETERS = (
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    RETURN_NAMES,
    RETURN_INFO,
    RETURN_ADAPTERS,
)

_CHAT_PARAMETERS: tuple[Literal["tools", "tool_choice", "chat_template_kwargs"], ...] = (
    "tools",
    "tool_choice",
    "chat_template_kwargs",
)


class TokenizeOptions(TypedDict, total=False):
    """Keyword arguments of `tokenize`; None leaves an option to the server."""

    add_generation_prompt: bool | None
    """Whether the template begins the assistant's turn; yes by default."""
    continue_final_message: bool | None
    """Whether the last message stays open, to be continued; no by default."""
    add_special_tokens: bool | None
    """Such as the one that begins a text: by default yes with a text, no with messages, whose template has them."""
    return_token_strs: bool | None
    """Whether to name each token."""
    tools: Sequence[Tool] | None
    """Functions that the model may call, as the chat template shows them. For messages only."""
    tool_choice: ToolChoice | None
    """With `none` the template does not show the tools. For messages only."""
    chat_template_kwargs: Mapping[str, object] | None
    """What the chat template is given beside the conversation, such as `enable_thinking`. For messages only."""


def tokenize(
    model: str, messages: Messages | None, text: str | None, options: TokenizeOptions, timeout: float | None
) -> Rpc[Tokens]:
    """From text to token ids.

    Raises:
        InvalidRequestError: not exactly one of messages and text, or something that cannot be sent.
    """
    if (messages is None) == (text is None):
        raise InvalidRequestError("give either messages or a text, and not both")
    given = (
        (wire.MESSAGES, wire.dump_messages(messages))
        if messages is not None
        else (wire.TEXT_INPUT, wire.encode_text(text or "", wire.TEXT_INPUT.name))
    )
    flags = {name: bool(value) for name, value in options.items() if value is not None and name in PARAMETERS}
    chat = {name: options[name] for name in _CHAT_PARAMETERS if options.get(name) is not None}
    inputs = (given, (wire.CHAT, wire.dump_json(chat, wire.CHAT.name))) if chat else (given,)
    return Rpc("ModelInfer", _request(model, flags, *inputs), partial(read, options=options), timeout)


def detokenize(model: str, token_ids: Sequence[int], timeout: float | None) -> Rpc[Tokens]:
    """From token ids to text. Raises InvalidRequestError for ids that are no plain numbers."""
    request = _request(model, {}, (TOKEN_IDS, wire.dump_json(list(token_ids), TOKEN_IDS.name)))
    return Rpc("ModelInfer", request, read, timeout)


def tokenizer_info(model: str, timeout: float | None) -> Rpc[TokenizerInfo]:
    """What the checkpoint says."""
    return Rpc("ModelInfer", _request(model, {RETURN_INFO: True}), read_info, timeout)


def adapters(timeout: float | None) -> Rpc[Mapping[str, tuple[AdapterInfo, ...]]]:
    """Those of each chat model, by the model's name. An older server refuses the question: InvalidRequestError."""
    message = pb.ModelInferRequest(model_name=NAME)
    message.parameters[RETURN_ADAPTERS].bool_param = True
    return Rpc("ModelInfer", message, read_adapters, timeout)


def read(response: pb.ModelInferResponse, options: TokenizeOptions | None = None) -> Tokens:
    """Raises EngineError: the outputs are not those of a tokenizer."""
    names: tuple[str, ...] = ()
    with wire.reading("a tokenizer"):
        (ids,), (text,), (limit,) = wire.read_columns(response, TOKENS)
        if (options or {}).get(RETURN_NAMES):
            ((given,),) = wire.read_columns(response, (TOKEN_STRS,))
            names = tuple(json.loads(given))
        return Tokens(tuple(json.loads(ids)), text, limit, names)


def read_info(response: pb.ModelInferResponse) -> TokenizerInfo:
    """Raises EngineError: the outputs are not those of a tokenizer, or of an older one."""
    with wire.reading("a tokenizer"):
        (limit,), (given,) = wire.read_columns(response, (TOKENS[2], INFO))
        info = json.loads(given)
        template = info.get("template", {})  # an older server does not say
        return TokenizerInfo(
            str(info["root"]),
            limit,
            dict(info["config"]),
            tuple(template.get("kwargs", ())),
            template.get("tools"),
            template.get("tool_calls"),
        )


def read_adapters(response: pb.ModelInferResponse) -> Mapping[str, tuple[AdapterInfo, ...]]:
    """Raises EngineError: the outputs are not those of a tokenizer."""
    with wire.reading("a tokenizer"):
        ((given,),) = wire.read_columns(response, (INFO,))
        return {
            model: tuple(AdapterInfo(name, str(root)) for name, root in sorted(found.items()))
            for model, found in json.loads(given)["adapters"].items()
        }


def _request(
    model: str, parameters: Mapping[str, bool], *inputs: tuple[wire.TensorSpec, bytes]
) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=NAME)
    for tensor, raw in ((MODEL, wire.encode_text(model, MODEL.name)), *inputs):
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1])
        message.raw_input_contents.append(wire.to_raw(raw))
    for name, flag in parameters.items():
        message.parameters[name].bool_param = flag
    return message
