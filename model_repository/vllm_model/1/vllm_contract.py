"""The contract of Triton's vLLM backend: what its clients send and get, in terms of the model `chat`.

Sources: `src/model.py`, `src/utils` and `docs/additional_outputs.md` of triton-inference-server/vllm_backend. Nothing
here imports Triton.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chat_engine.errors import ChatError, InvalidArgumentError

Array = np.ndarray[Any, Any]

RETURNS = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_logprobs": "logprobs",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""What is asked for by which switch, beside the text."""

DEFAULT_MAX_TOKENS = 16
"""vLLM's own default, by which clients that name none know the length of an answer."""

CHAT_OUTPUTS = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens", "logprobs")
"""What an answer is made of."""

_TRITON_ID = "id"  # of a request to `generate`; some servers pass it on as a parameter
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_SHOWN = 80
WITHOUT_EFFECT: dict[str, object] = {
    "n": 1,
    "best_of": 1,
    "use_beam_search": False,
    "early_stopping": False,
    "length_penalty": 1.0,
    "bad_words": [],
    "include_stop_str_in_output": False,
    "detokenize": True,
    "spaces_between_special_tokens": True,
}
"""Parameters of vLLM that may be left out when they have these values; with others they are for `chat` to judge."""

_NOT_REPORTED = ("prompt_logprobs", "return_token_ids")
"""Parameters of `chat` that ask for outputs which the vLLM backend does not have."""
ADAPTER = "lora_name"
"""Among the sampling parameters, as that backend has it."""
_ONE_ANSWER = "there is one answer to a request; leave it out, and send the request once for each answer that you want"
_REFUSED = {
    "n": _ONE_ANSWER,
    "best_of": _ONE_ANSWER,
    **dict.fromkeys(_NOT_REPORTED, "there is no output for it; leave it out, or ask the model `chat`"),
}
_NO_IMAGES = "images are not served, the model reads text alone; leave it out"


@dataclass(frozen=True)
class Asked:
    """A request as it was meant.

    Attributes:
        inputs: those of `chat`, each of shape [1, 1].
        stream: whether each piece of text is a response of its own.
        outputs: what the caller wants beside the text.
        logprobs: whether log-probabilities were asked for; without, `logprobs` is null, as in vLLM.
    """

    inputs: dict[str, Array]
    stream: bool
    outputs: frozenset[str]
    logprobs: bool


def read(tensors: Mapping[str, Array], parameters: Mapping[str, object]) -> Asked:
    """Inputs of shape [1] and Triton's scalar parameters, of which the same names mean the same; an input wins.

    Raises:
        InvalidArgumentError: what cannot be served. What is wrong with prompt and sampling, `chat` itself says.
    """
    if "image" in tensors:
        raise InvalidArgumentError(_NO_IMAGES, field="image")
    scalars = {name: value for name, value in parameters.items() if name != _TRITON_ID}
    stream = _flag("stream", tensors, scalars) or False
    excluded = _flag("exclude_input_in_output", tensors, scalars)
    if stream and excluded is False:
        raise InvalidArgumentError(
            "false is not allowed with stream: a stream never includes the prompt; leave one of them out",
            field="exclude_input_in_output",
        )
    outputs = frozenset(output for switch, output in RETURNS.items() if _flag(switch, tensors, scalars))
    given = tensors.get("sampling_parameters")
    sampling, adapter, logprobs = _sampling(None if given is None else bytes(given[0]), scalars, outputs)
    inputs = {
        "text_input": _text(bytes(tensors["text_input"][0])),
        "sampling_parameters": _text(sampling),
        "stream": np.array([[stream]]),
        "exclude_input_in_output": np.array([[stream if excluded is None else excluded]]),
    }
    if adapter is not None:
        inputs["adapter"] = _text(adapter.encode())
    return Asked(inputs, stream, outputs, logprobs)


def in_its_words(error: ChatError) -> ChatError:
    """An error of `chat` by the name that the caller has used."""
    return type(error)(error.sentence, field=ADAPTER, row=error.row) if error.field == "adapter" else error


class Answer:
    """Makes the outputs of each response from what `chat` has sent, whose counts and sums are so far."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._num_output_tokens = 0
        self._cumulative_logprob = 0.0

    def outputs(self, chat: Mapping[str, Any]) -> dict[str, Array]:
        """`chat`: the values of `CHAT_OUTPUTS`."""
        entries = json.loads(chat["logprobs"] or "[]")
        self._cumulative_logprob += sum(entry["logprob"] for entry in entries)
        new_tokens = chat["num_output_tokens"] - self._num_output_tokens
        self._num_output_tokens = chat["num_output_tokens"]
        logprobs = json.dumps([_by_token_id(entry) for entry in entries]) if self._asked.logprobs else "null"
        reason = chat["finish_reason"] or b"None"  # vLLM's word for not yet
        values = {
            "text_output": np.array([chat["text_output"]], np.object_),
            "finish_reason": np.array([reason], np.object_),
            "cumulative_logprob": np.array([self._cumulative_logprob], np.float32),
            "logprobs": np.array([logprobs.encode()], np.object_),
            "num_input_tokens": np.array([chat["num_input_tokens"]], np.uint32),
            "num_output_tokens": np.array([new_tokens], np.uint32),
        }
        return {name: value for name, value in values.items() if name == "text_output" or name in self._asked.outputs}


def _flag(name: str, tensors: Mapping[str, Array], scalars: dict[str, object]) -> bool | None:
    """A switch; None where it is not given. It is no sampling parameter, so it is taken out of `scalars`."""
    scalar = scalars.pop(name, None)
    if name in tensors:
        return bool(tensors[name][0])
    if scalar is None or isinstance(scalar, bool):
        return scalar
    if (text := str(scalar).strip().lower()) in _FLAGS:
        return _FLAGS[text]
    raise InvalidArgumentError(f"must be true or false (got {_show(scalar)})", field=name)


def _sampling(
    raw: bytes | None, scalars: Mapping[str, object], outputs: frozenset[str]
) -> tuple[bytes, str | None, bool]:
    """The sampling parameters of `chat`, the adapter, and whether the caller has asked for log-probabilities."""
    given = _json_object(raw) if raw is not None else {}
    if given is None:
        return raw or b"", None, False
    given = {name: value for name, value in {**scalars, **given}.items() if value is not None}
    for name, value in WITHOUT_EFFECT.items():
        if name in given and _same(given[name], value):
            del given[name]
    for name in _NOT_REPORTED:
        if name in given and _same(given[name], False):
            del given[name]
    for name, advice in _REFUSED.items():
        if name in given:
            raise InvalidArgumentError(f"{_show(given[name])} given, but {advice}", field=name)
    adapter = given.pop(ADAPTER, None)
    if not (adapter is None or isinstance(adapter, str)):
        raise InvalidArgumentError(f"must be the name of an adapter (got {_show(adapter)})", field=ADAPTER)
    logprobs = "logprobs" in given
    if "cumulative_logprob" in outputs:
        given.setdefault("logprobs", 0)  # that of the chosen tokens alone
    given.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
    return json.dumps(given).encode(), adapter, logprobs


def _json_object(raw: bytes) -> dict[str, object] | None:
    """None for anything else, which `chat` refuses with the reason."""
    parsed = _json(raw)
    return parsed if isinstance(parsed, dict) else None


def _same(given: object, default: object) -> bool:
    """Also where it is written as a text, as these clients do."""
    value = _json(given.lower()) if isinstance(given, str) else given
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _json(text: str | bytes) -> object:
    """None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_token_id(entry: dict[str, Any]) -> dict[str, object]:
    """vLLM's form for one token. The rank of a token that is not among the alternatives is not known."""
    ranks = {other["token_id"]: rank for rank, other in enumerate(entry["top_logprobs"], start=1)}
    return {
        str(token["token_id"]): {
            "logprob": token["logprob"],
            "rank": ranks.get(token["token_id"]),
            "decoded_token": token["token"],
        }
        for token in (entry, *entry["top_logprobs"])
    }


def _text(value: bytes) -> Array:
    return np.array([[value]], np.object_)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
