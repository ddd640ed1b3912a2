"""What arrives on the wire becomes a `ChatRequest`, or an `InvalidRequestError` that names the field and the value.

Every limit of a request is checked here, at the edge; nothing behind it sees JSON.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, ContextLengthError, InvalidRequestError
from chat_engine.prompt import MESSAGES, PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams

SWITCHES = ("stream", "exclude_input_in_output")
_SHOWN = 80


@dataclass(frozen=True)
class WireRequest:
    """A request as it came: the contract of `config.pbtxt`, undecoded.

    `parameters` are Triton's scalar request parameters; a tensor of the same name wins over none, and both is an error.
    """

    id: str
    messages: bytes | None = None
    text_input: bytes | None = None
    sampling_parameters: bytes | None = None
    stream: bool | None = None
    exclude_input_in_output: bool | None = None
    parameters: Mapping[str, object] | None = None


class RequestParser:
    """Parses and checks requests for one model.

    Args:
        prompts: the model's tokenizer and chat template.
        config: limits on requests.
        max_model_len: context limit in tokens.
        vocab_size: number of token ids.
        defaults: sampling parameters of a request that names none, from the model's `generation_config.json`.

    Raises:
        ConfigError: the defaults themselves are out of range.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        config: EngineConfig,
        max_model_len: int,
        vocab_size: int,
        defaults: Mapping[str, object],
    ) -> None:
        self._prompts = prompts
        self._config = config
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._defaults = dict(defaults)
        try:
            SamplingParams.model_validate(self._defaults)
        except ValidationError as error:
            raise ConfigError(f"generation_config.json: {_explain(error)}") from error

    def parse(self, wire: WireRequest) -> ChatRequest:
        """Raises InvalidRequestError (ContextLengthError when it does not fit)."""
        scalars = dict(wire.parameters or {})
        switches = {name: _switch(name, getattr(wire, name), scalars) for name in SWITCHES}
        sampling = self._sampling(wire.sampling_parameters, scalars)
        prompt, is_rendered = self._prompt(wire)
        prompt_ids = self._prompts.encode(prompt, is_rendered=is_rendered)
        if not prompt_ids:
            raise InvalidRequestError("text_input: the prompt has no tokens; send at least one")
        return ChatRequest(
            id=wire.id,
            prompt_ids=prompt_ids,
            sampling=sampling,
            max_tokens=self._max_tokens(len(prompt_ids), sampling),
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            echo="" if switches["exclude_input_in_output"] else prompt,
            stream=switches["stream"],
        )

    def _sampling(self, raw: bytes | None, scalars: Mapping[str, object]) -> SamplingParams:
        _at_most("sampling_parameters", len(raw or b""), self._config.max_prompt_bytes, "bytes")
        given = _json_object("sampling_parameters", raw) if raw is not None else {}
        twice = sorted(given.keys() & scalars.keys())
        if twice:
            raise InvalidRequestError(
                f"{_name(twice[0])}: given both in sampling_parameters and as a request parameter"
            )
        named = {k: v for k, v in {**given, **scalars}.items() if v is not None or k not in SamplingParams.model_fields}
        merged = {**self._defaults, **named}
        try:
            sampling = SamplingParams.model_validate(_lenient(merged))
        except ValidationError as error:
            raise InvalidRequestError(_explain(error)) from error
        self._check_limits(sampling)
        return sampling

    def _check_limits(self, sampling: SamplingParams) -> None:
        config = self._config
        _at_most("logprobs", sampling.logprobs or 0, config.max_logprobs)
        _at_most("stop", len(sampling.stop), config.max_stop_strings, "strings")
        for stop in sampling.stop:
            _at_most("stop", len(stop), config.max_stop_length, "characters in one string")
        _at_most("logit_bias", len(sampling.logit_bias), config.max_logit_bias, "entries")
        _at_most("stop_token_ids", len(sampling.stop_token_ids), config.max_logit_bias, "entries")
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(sampling, name):
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidRequestError(
                        f"{name}: token id {_show(token_id)} is not in the vocabulary; "
                        f"allowed are 0 to {self._vocab_size - 1}"
                    )

    def _prompt(self, wire: WireRequest) -> tuple[str, bool]:
        if (wire.messages is None) == (wire.text_input is None):
            both = "neither" if wire.messages is None else "both"
            raise InvalidRequestError(f"messages, text_input: exactly one is required, {both} given")
        if wire.messages is None:
            assert wire.text_input is not None
            return self._text("text_input", wire.text_input), False
        parsed = _json("messages", self._text("messages", wire.messages))
        try:
            messages = MESSAGES.validate_python(parsed)
        except ValidationError as error:
            raise InvalidRequestError(_explain(error, "messages")) from error
        if not messages:
            raise InvalidRequestError("messages: the list is empty; at least one message is required")
        _at_most("messages", len(messages), self._config.max_messages, "messages")
        for index, message in enumerate(messages):
            _check_text(f"messages.{index}.content", message.content)
        return self._prompts.render(messages), True

    def _text(self, name: str, raw: bytes) -> str:
        _at_most(name, len(raw), self._config.max_prompt_bytes, "bytes")
        text = _decode(name, raw)
        if not text:
            raise InvalidRequestError(f"{name}: empty; at least one character is required")
        _check_text(name, text)
        return text

    def _max_tokens(self, num_prompt: int, sampling: SamplingParams) -> int:
        limit = self._max_model_len
        room = limit - num_prompt
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens; the context holds {limit}, "
                "and at least one must be left for the answer"
            )
        wanted = sampling.max_tokens
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"max_tokens: {wanted} and a prompt of {num_prompt} tokens exceed the context of {limit} tokens; "
                f"at most {room} are left for the answer"
            )
        max_tokens = min(self._config.default_max_tokens, room) if wanted is None else wanted
        if sampling.min_tokens > max_tokens:
            raise InvalidRequestError(f"min_tokens: {sampling.min_tokens} is more than max_tokens, {max_tokens}")
        return max_tokens


def _switch(name: str, tensor: bool | None, scalars: dict[str, object]) -> bool:
    scalar = scalars.pop(name, None)
    if scalar is None:
        return True if tensor is None else tensor
    if tensor is not None:
        raise InvalidRequestError(f"{name}: given both as an input and as a request parameter")
    if not isinstance(scalar, bool):
        raise InvalidRequestError(f"{name}: must be true or false (got {_show(scalar)})")
    return scalar


def _lenient(given: dict[str, object]) -> dict[str, object]:
    """Forms that JSON and Triton's scalar parameters force on the caller: string keys, a single stop string, lists."""
    given = dict(given)
    stop = given.get("stop")
    if isinstance(stop, str):
        given["stop"] = (stop,)
    for name in ("stop", "stop_token_ids"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])  # type: ignore[arg-type]
    bias = given.get("logit_bias")
    if isinstance(bias, dict):
        given["logit_bias"] = {_token_id(key): value for key, value in bias.items()}
    return given


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit()) or len(key) > 18:
        raise InvalidRequestError(f"logit_bias: keys must be token ids (got {_show(key)})")
    return int(key)


def _json_object(name: str, raw: bytes) -> dict[str, Any]:
    parsed = _json(name, _decode(name, raw))
    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"{name}: must be a JSON object (got {_show(parsed)})")
    return parsed


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=float)
    except RecursionError as error:
        raise InvalidRequestError(f"{name}: nested too deeply") from error
    except ValueError as error:
        raise InvalidRequestError(f"{name}: not JSON: {error}") from error


def _decode(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name}: not valid UTF-8 at byte {error.start} ({error.reason})") from error


def _check_text(name: str, text: str) -> None:
    if "\0" in text:
        raise InvalidRequestError(
            f"{name}: holds a NUL character at position {text.index(chr(0))}, which is not allowed"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name}: holds half a surrogate pair at position {error.start}") from error


def _at_most(name: str, value: int, limit: int, unit: str = "") -> None:
    if value > limit:
        raise InvalidRequestError(f"{name}: {_show(value)} {unit}".rstrip() + f" given; at most {limit} are allowed")


def _explain(error: ValidationError, prefix: str = "") -> str:
    """The first mistake, with its place, its value and what is allowed."""
    first = error.errors()[0]
    place = ".".join(map(_name, [*([prefix] if prefix else []), *first["loc"]])) or "sampling_parameters"
    if first["type"] == "extra_forbidden" and not prefix:
        allowed = ", ".join(SamplingParams.model_fields)
        return f"{place}: unknown parameter (value {_show(first['input'])}); allowed are {allowed}"
    message = first["msg"].replace("Input should be", "must be")
    return f"{place}: {message} (got {_show(first['input'])})"


def _name(part: int | str) -> str:
    """A name the caller chose, fit to be shown: it may be long, or hold what no text on the wire can."""
    text = str(part)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
