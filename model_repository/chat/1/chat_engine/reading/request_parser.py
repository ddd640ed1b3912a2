"""What arrives on the wire becomes a `ChatRequest`, or an `InvalidArgumentError` that names the field and the value.

Every limit of a request is checked here, at the edge; nothing behind it sees JSON.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import ValidationError

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, ContextLengthError, InvalidArgumentError, field_name
from chat_engine.reading.adapter_names import FIELD as ADAPTER
from chat_engine.reading.adapter_names import read_adapter
from chat_engine.reading.answer_rules import AnswerRules
from chat_engine.reading.chat_parameters import TEMPLATE_OPTIONS, ChatParameters, read_chat_parameters
from chat_engine.reading.checks import at_most, check_flag, check_token_id, decode, explained, read_json, show, unknown
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.prompt_parser import Prompt, PromptParser
from chat_engine.reading.structured import FIELD as STRUCTURED
from chat_engine.reading.structured import KINDS, lenient_outputs
from chat_engine.request import ChatRequest, SamplingParams

SWITCHES = ("stream", "exclude_input_in_output")
PROMPTS = ("messages", "text_input", "prompt_token_ids")
_DEFAULT_MAX_TOKENS = 512
_TRITON_ID = "id"  # of a request to `generate`; some servers pass it on as a parameter


@dataclass(frozen=True)
class WireRequest:
    """A request as it came: the contract of `config.pbtxt`, undecoded.

    `parameters` are Triton's scalar request parameters. What an input says wins over them, as in Triton's vLLM backend,
    whose own client sends both.
    """

    id: str
    messages: bytes | None = None
    text_input: bytes | None = None
    prompt_token_ids: bytes | None = None
    sampling_parameters: bytes | None = None
    chat_parameters: bytes | None = None
    adapter: bytes | None = None
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
        max_tokens: of a request that names none, where the settings name none either.
        answers: how answers are read, and what they must follow.

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
        max_tokens: int | None = None,
        answers: AnswerRules | None = None,
    ) -> None:
        self._answers = answers or AnswerRules(config)
        self._prompts = PromptParser(prompts, config, vocab_size, "prompt_token_ids")
        self._config = config
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._defaults = dict(defaults)
        self._default_max_tokens = config.default_max_tokens or max_tokens or _DEFAULT_MAX_TOKENS
        try:
            SamplingParams.model_validate(self._defaults)
        except ValidationError as error:
            raise ConfigError(f"generation_config.json: {_refusal(error)}") from error

    def parse(self, wire: WireRequest) -> ChatRequest:
        """Raises InvalidArgumentError (ContextLengthError when it does not fit)."""
        scalars = {name: value for name, value in (wire.parameters or {}).items() if name != _TRITON_ID}
        switches = {name: _switch(name, getattr(wire, name), scalars) for name in SWITCHES}
        adapter = read_adapter(wire.adapter, scalars.pop(ADAPTER, None), self._config.adapters)
        given = self._parameters(wire.sampling_parameters, scalars)
        options = {name: check_flag(name, given.pop(name, None)) for name in TEMPLATE_OPTIONS}
        chat = read_chat_parameters(wire.chat_parameters, self._config).with_options(options)
        sampling = self._sampling(given)
        if sampling.max_tokens == 0 and sampling.prompt_logprobs is None and switches["exclude_input_in_output"]:
            raise InvalidArgumentError(
                "0 generates no answer; allowed only with prompt_logprobs, or if the prompt is to be returned",
                field="max_tokens",
            )
        prompt = self._prompt(wire, chat)
        if not switches["stream"] and sampling.prompt_logprobs is not None:
            self._check_scores(len(prompt.ids) * (1 + sampling.prompt_logprobs))
        reply, constraint = self._answers.of(sampling.structured_outputs, chat, prompt)
        return ChatRequest(
            id=wire.id,
            prompt_ids=prompt.ids,
            sampling=sampling,
            max_tokens=self._max_tokens(len(prompt.ids), sampling),
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            reply=reply,
            constraint=constraint,
            echo="" if switches["exclude_input_in_output"] else self._prompts.echo(prompt),
            stream=switches["stream"],
            adapter=adapter,
        )

    def _parameters(self, raw: bytes | None, scalars: Mapping[str, object]) -> dict[str, object]:
        """What was given in `sampling_parameters` and as scalars, by name."""
        at_most("sampling_parameters", len(raw or b""), self._config.max_prompt_bytes, "bytes")
        given = _json_object("sampling_parameters", raw) if raw is not None else {}
        return {**scalars, **given}

    def _sampling(self, given: Mapping[str, object]) -> SamplingParams:
        named = {k: v for k, v in given.items() if v is not None or k not in SamplingParams.model_fields}
        try:
            sampling = SamplingParams.model_validate(_lenient({**self._defaults, **named}))
        except ValidationError as error:
            raise _refusal(error) from error
        self._check_limits(sampling)
        return sampling

    def _check_limits(self, sampling: SamplingParams) -> None:
        config = self._config
        at_most("logprobs", sampling.logprobs or 0, config.max_logprobs)
        at_most("prompt_logprobs", sampling.prompt_logprobs or 0, config.max_logprobs)
        at_most("stop", len(sampling.stop), config.max_stop_strings, "strings")
        for stop in sampling.stop:
            at_most("stop", len(stop), config.max_stop_length, "characters in one string")
        at_most("logit_bias", len(sampling.logit_bias), config.max_logit_bias, "entries")
        at_most("stop_token_ids", len(sampling.stop_token_ids), config.max_logit_bias, "entries")
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(sampling, name):
                check_token_id(name, token_id, self._vocab_size)

    def _check_scores(self, count: int) -> None:
        """A stream has them in portions; one response would hold up everybody while it is written."""
        limit = self._config.max_unstreamed_scores
        if count > limit:
            raise InvalidArgumentError(
                f"{count} log-probabilities in one response; at most {limit} are allowed without stream: true",
                field="prompt_logprobs",
            )

    def _prompt(self, wire: WireRequest, chat: ChatParameters) -> Prompt:
        for name in PROMPTS:
            if getattr(wire, name) == b"":
                raise InvalidArgumentError("empty; at least one character is required", field=name)
        prompt = self._prompts.parse(
            wire.messages,
            wire.text_input,
            wire.prompt_token_ids,
            chat,
            wants_beginning=chat.parse and self._answers.may_reason,
        )
        if not prompt.ids:
            name = next(name for name in PROMPTS if getattr(wire, name) is not None)
            raise InvalidArgumentError("the prompt has no tokens; send at least one", field=name)
        return prompt

    def _max_tokens(self, num_prompt: int, sampling: SamplingParams) -> int:
        limit = self._max_model_len
        room = limit - num_prompt
        if room < (0 if sampling.max_tokens == 0 else 1):
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens; this model's maximum context length is {limit} tokens, "
                "and at least one must be left for the answer"
            )
        wanted = sampling.max_tokens
        if wanted is not None and wanted > room:
            raise ContextLengthError(
                f"{wanted} and a prompt of {num_prompt} tokens; this model's maximum context length is "
                f"{limit} tokens, so at most {room} are left for the answer",
                field="max_tokens",
            )
        max_tokens = min(self._default_max_tokens, room) if wanted is None else wanted
        if sampling.min_tokens > max_tokens:
            raise InvalidArgumentError(
                f"{sampling.min_tokens} is more than max_tokens, {max_tokens}", field="min_tokens"
            )
        return max_tokens


def _switch(name: str, tensor: bool | None, scalars: dict[str, object]) -> bool:
    scalar = check_flag(name, _as_flag(scalars.pop(name, None)))
    return (scalar if tensor is None else tensor) is not False


def _lenient(given: dict[str, object]) -> dict[str, object]:
    """Forms that JSON and Triton's scalar parameters force on the caller: string keys, a single stop string, lists.

    And numbers as texts, which clients of Triton's vLLM backend send.
    """
    given = {name: _READ_TEXT.get(name, _as_is)(value) for name, value in given.items()}
    if given.get("seed") == -1:  # vLLM's word for none
        del given["seed"]
    stop = given.get("stop")
    if isinstance(stop, str):
        given["stop"] = (stop,)
    for name in _named(tuple):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])  # type: ignore[arg-type]
    if STRUCTURED in given:
        given[STRUCTURED] = lenient_outputs(given[STRUCTURED])
    bias = given.get("logit_bias")
    if isinstance(bias, dict):
        given["logit_bias"] = {_token_id(key): value for key, value in bias.items()}
    return given


def _as_is(value: object) -> object:
    return value


def _as_number(value: object) -> object:
    """`"0.5"` as 0.5; what is no number stays, to be refused by its name."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value) if _FRACTION.search(value) else int(value)
    return value


def _as_flag(value: object) -> object:
    return _FLAGS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _named(*containers: type) -> list[str]:
    """The sampling parameters of these types."""
    return [name for name, field in SamplingParams.model_fields.items() if get_origin(field.annotation) in containers]


_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,40})?([eE][+-]?\d{1,3})?")
_FRACTION = re.compile(r"[.eE]")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_READ_TEXT: dict[str, Callable[[object], object]] = {
    name: _as_flag if field.annotation is bool else _as_number
    for name, field in SamplingParams.model_fields.items()
    if name not in _named(tuple, dict)
}


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit()) or len(key) > 18:
        raise InvalidArgumentError(f"keys must be token ids (got {show(key)})", field="logit_bias")
    return int(key)


def _json_object(name: str, raw: bytes) -> dict[str, Any]:
    parsed = read_json(name, decode(name, raw))
    if not isinstance(parsed, dict):
        raise InvalidArgumentError(f"must be a JSON object (got {show(parsed)})", field=name)
    return parsed


def _refusal(error: ValidationError) -> InvalidArgumentError:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        allowed = KINDS if first["loc"][0] == STRUCTURED else (*SamplingParams.model_fields, *TEMPLATE_OPTIONS)
        return unknown(field_name(*first["loc"]), first["input"], allowed)
    name, *rest = first["loc"] or ("sampling_parameters",)
    if name == "logit_bias":
        return explained(error, name, *map(str, rest))  # its keys are names, in JSON
    if name == STRUCTURED and rest[:1] == ["json"]:
        return InvalidArgumentError(
            f"must be a JSON schema as an object, or true (got {show(first['input'])})", field=f"{STRUCTURED}.json"
        )
    return explained(error, name, *rest)
