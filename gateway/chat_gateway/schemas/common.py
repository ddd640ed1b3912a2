"""What the requests have in common. A field is honoured, or taken only at the values that change nothing.

The types say which values those are, so that the published schema is true; `only` has a sentence for the others.
Sources: OpenAI API reference; vLLM's "extra parameters" of its OpenAI-compatible server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import PydanticCustomError

from triton_chat.types import SamplingParams

MAX_LOGPROBS: Final = 20
MAX_COUNT: Final = 2**31 - 1
"""What a tensor can hold."""


class Strict(BaseModel):
    """An object of a request: no unknown fields, no conversions."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )


def only(advice: str) -> WrapValidator:
    """Answers any value that the type does not allow with one sentence."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("unsupported", advice) from None

    return WrapValidator(check)


def whole(value: object) -> object:
    """For fields that are integers: 1.0 is one to JSON and its schemas. Token ids are not among them, being many."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def by_form(choose: Callable[[Any], TypeAdapter[Any] | None], expected: str) -> WrapValidator:
    """Checks a union by the one member whose form a value has, so that an error names a place in that member alone."""

    def check(value: object, _: ValidatorFunctionWrapHandler) -> object:
        adapter = choose(value)
        if adapter is None:
            raise PydanticCustomError("form", "must be {expected}", {"expected": expected})
        return adapter.validate_python(value, strict=True)

    return WrapValidator(check)


def text_or_list(text: Any, items: Any, expected: str) -> WrapValidator:
    """`by_form` for a string type or a list type."""
    forms: dict[type, TypeAdapter[Any]] = {str: TypeAdapter(text), list: TypeAdapter(items)}
    return by_form(lambda value: forms.get(type(value)), expected)


def _is_off(value: bool) -> bool:
    if value:
        raise ValueError("must be false")
    return value


Off = Annotated[bool, AfterValidator(_is_off), Field(json_schema_extra={"const": False})]
"""`Literal[False]` would take 0, even where types are strict."""
TokenId = Annotated[int, Field(ge=0, le=MAX_COUNT)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, description="A name from `/v1/models`.")]
Nothing = Annotated[list[Any], Field(max_length=0)]
User = Annotated[str, Field(max_length=512, description="Who asks, in the caller's own terms. Not used.")]

_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(max_length=16)]
Stop = Annotated[_StopString | _StopStrings, text_or_list(_StopString, _StopStrings, "a string or a list of strings")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
LogitBias = Annotated[dict[_BiasKey, _Bias], Field(max_length=1024, json_schema_extra={"additionalProperties": False})]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send the usage in a last chunk of its own; all other chunks then have `usage: null`."
    )
    include_obfuscation: Annotated[
        Off | None, only("no padding is added to chunks here; leave it out or send false")
    ] = None


class GenerationRequest(Strict):
    """The fields that `/v1/chat/completions` and `/v1/completions` share."""

    model: ModelName
    n: int | None = Field(None, ge=1, le=MAX_COUNT, description="Answers to each prompt; they share its prefix cache.")
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: LogitBias | None = Field(None, description="Token ids, as text, to what is added to their logits.")
    stop: Stop | None = Field(None, description="The answer ends before any of these.")
    seed: int | None = Field(None, description="Choice `i` of a prompt is drawn with `seed + i`, modulo 2**64.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User | None = None

    top_k: int | None = Field(None, ge=-1, le=MAX_COUNT, description="0 and -1 mean all.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_COUNT, description="Alternatives to report per token of the prompt; not for streams."
    )
    return_token_ids: bool | None = Field(None, description="Report the ids of the prompt and of the answer.")

    _whole = field_validator("n", "max_tokens", "seed", "top_k", "min_tokens", "prompt_logprobs", mode="before")(whole)

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_for_streams(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise PydanticCustomError("unsupported", "not for streams; leave it out, or send stream: false with it")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("unsupported", "only for streams; send stream: true with it, or leave it out")
        return value

    @property
    def num_answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling_params(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """How to sample one choice; the seed is that of the first one."""
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=None if self.logit_bias is None else {int(key): bias for key, bias in self.logit_bias.items()},
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            return_token_ids=self.return_token_ids or None,
        )
