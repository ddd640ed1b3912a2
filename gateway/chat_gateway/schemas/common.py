"""What the bodies of `/v1/chat/completions` and `/v1/completions` have in common.

Sources: OpenAI API reference; vLLM's "extra parameters" of its OpenAI-compatible server.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.fields import MAX_COUNT, ModelName, Strict, TokenId, User, text_or_list, whole
from chat_gateway.schemas.inert import InertInGeneration
from triton_chat.types import SamplingParams

SEEDS: Final = 2**64
"""So many different seeds the engine has."""
_ANY_SEED: Final = -1
"""vLLM's word for none."""

NO_FORMAT: Final = "structured output is not supported; leave it out or send type text"

_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(max_length=16)]
Stop = Annotated[_StopString | _StopStrings, text_or_list(_StopString, _StopStrings, "a string or a list of strings")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
_BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
LogitBias = Annotated[dict[_BiasKey, _Bias], Field(max_length=1024, json_schema_extra={"additionalProperties": False})]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class TextFormat(Strict):
    type: Literal["text"]


class StreamOptions(Strict):
    include_usage: bool | None = Field(
        None, description="Send the usage in a separate last chunk; all other chunks then have `usage: null`."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk has the usage so far, over all choices."
    )
    include_obfuscation: bool | None = Field(None, description="Not used: no padding is added to chunks.")

    @property
    def continuous_usage(self) -> bool:
        return bool(self.include_usage and self.continuous_usage_stats)


class GenerationRequest(InertInGeneration):
    """The fields that `/v1/chat/completions` and `/v1/completions` share."""

    model: ModelName
    n: int | None = Field(
        None, ge=1, le=MAX_COUNT, description="Number of answers per prompt; they share its prefix cache."
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1, description="0: only the most probable token.")
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: LogitBias | None = Field(
        None, description="Maps token ids, as strings, to a value added to their logits."
    )
    stop: Stop | None = Field(None, description="The answer ends before any of these strings.")
    seed: int | None = Field(
        None,
        ge=-SEEDS // 2,
        le=SEEDS - 1,
        description="64 bits, signed or unsigned; -1: none. Choice `i` is sampled with `seed + i`, modulo 2**64.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User | None = None

    top_k: int | None = Field(None, ge=-1, le=MAX_COUNT, description="0 and -1: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    prompt_logprobs: int | None = Field(
        None, ge=0, le=MAX_COUNT, description="Alternatives to report per prompt token; not for streams."
    )
    return_token_ids: bool | None = Field(None, description="Report the ids of the prompt and of the answer.")
    skip_special_tokens: bool | None = Field(None, description="False: special tokens are part of the text.")

    _whole = field_validator("n", "max_tokens", "seed", "top_k", "min_tokens", "prompt_logprobs", mode="before")(whole)

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_for_streams(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise PydanticCustomError("unsupported", "not supported for streams; leave it out, or send stream: false")
        return value

    @field_validator("stream_options")
    @classmethod
    def _only_for_streams(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("unsupported", "only for streams; send stream: true, or leave it out")
        return value

    @property
    def num_answers(self) -> int:
        """To each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage

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
            seed=None if self.seed in (None, _ANY_SEED) else self.seed % SEEDS,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            return_token_ids=self.return_token_ids or None,
            skip_special_tokens=self.skip_special_tokens,
        )
