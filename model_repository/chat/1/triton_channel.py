"""Between Triton's tensors and the engine's types: a request in, the responses of one caller out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_io import abandoned
from triton_io.caller import Caller

from chat_engine import errors
from chat_engine.reading.request_parser import SWITCHES, WireRequest
from chat_engine.request import Alternative, PromptToken, TokenEvent, TokenLogprobs, ToolCallDelta


class TritonChannel:
    """The way to one caller, for the engine's events."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self._caller = Caller(request.get_response_sender())
        self._abandoned = abandoned.mark_of(request.request_id())
        self._begun = False

    def send(self, event: TokenEvent) -> None:
        """Sends one event; the final flag rides on the one that carries a finish reason."""
        if event.error is not None:
            if self._abandoned is None or not self._begun:
                self.fail(event.error)
                return
            # tritonserver 2.51 loses an error among the responses to another model, which then waits for ever.
            event = replace(event, text=errors.to_wire(event.error), error=None)
        self._begun = True
        response = pb_utils.InferenceResponse(output_tensors=_tensors(event))
        self._caller.send(response, is_last=event.finish_reason is not None)

    def fail(self, error: errors.ChatError) -> None:
        """Ends the request with an error."""
        self._caller.fail(error)

    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled a request that has not ended, or another model says that he has."""
        return self._caller.is_cancelled() or (self._abandoned is not None and self._abandoned.exists())


def wire_request(request: pb_utils.InferenceRequest) -> WireRequest:
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    for name, tensor in tensors.items():
        if tensor.size != 1:
            shape = "x".join(map(str, tensor.shape))
            raise errors.InvalidArgumentError(
                f"shape {shape}; a request has one conversation, so shape 1x1 (chat_unary takes several rows)",
                field=name,
            )
    values = {name: tensor.reshape(-1)[0] for name, tensor in tensors.items()}
    values |= {name: bool(values[name]) for name in SWITCHES if name in values}
    parameters = json.loads(request.parameters())
    return WireRequest(id=uuid.uuid4().hex, parameters=parameters, **values)


def _tensors(event: TokenEvent) -> list[pb_utils.Tensor]:
    reason = event.finish_reason.value if event.finish_reason else ""
    return [
        _text("text_output", event.text),
        _text("reasoning_output", event.reasoning),
        _list("tool_calls", [_tool_call(delta) for delta in event.tool_calls]),
        _text("finish_reason", reason),
        _count("num_input_tokens", event.num_input_tokens),
        _count("num_output_tokens", event.num_output_tokens),
        _count("num_cached_tokens", event.num_cached_tokens),
        _list("logprobs", [_logprobs(entry) for entry in event.logprobs]),
        *_where_any("prompt_logprobs", [_prompt_logprobs(token) for token in event.prompt_tokens]),
        *_where_any("token_ids", event.token_ids),
        *_where_any("prompt_token_ids", event.prompt_token_ids),
        *([_count("num_reasoning_tokens", event.num_reasoning_tokens)] if event.num_reasoning_tokens else []),
    ]


def _where_any(name: str, values: Sequence[object]) -> list[pb_utils.Tensor]:
    """An output that few ask for is left out where it has nothing: three more cost each response 0.1 ms."""
    return [_list(name, values)] if values else []


def _text(name: str, text: str) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([[text.encode()]], dtype=np.object_))


def _list(name: str, values: Sequence[object]) -> pb_utils.Tensor:
    return _text(name, json.dumps(values) if values else "")


def _count(name: str, count: int) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([[count]], dtype=np.int32))


def _tool_call(delta: ToolCallDelta) -> dict[str, object]:
    """OpenAI's streaming shape: id, type and name come once."""
    head = {"id": delta.id, "type": "function"} if delta.id else {}
    name = {"name": delta.name} if delta.name else {}
    return {"index": delta.index, **head, "function": {**name, "arguments": delta.arguments}}


def _logprobs(entry: TokenLogprobs) -> dict[str, object]:
    """OpenAI's shape, and the id, by which one token is told from another of the same text."""
    chosen, *top = (_named(token) for token in (entry.chosen, *entry.top))
    return {**chosen, "top_logprobs": top}


def _prompt_logprobs(token: PromptToken) -> dict[str, object]:
    """The same, and the rank."""
    return {**_named(token), "rank": token.rank, "top_logprobs": [_named(other) for other in token.top]}


def _named(token: Alternative | PromptToken) -> dict[str, object]:
    return {
        "token": token.token,
        "logprob": token.logprob,
        "bytes": list(token.bytes),
        "token_id": token.token_id,
    }
