"""The body of `POST /v1/completions`. Source: `openai.types.completion_create_params`, see `schemas.chat`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.common import NO_FORMAT, GenerationRequest, TextFormat
from chat_gateway.schemas.fields import MAX_COUNT, MAX_LOGPROBS, only, whole
from chat_gateway.schemas.inert import InertInCompletions
from chat_gateway.schemas.inputs import Inputs
from triton_chat.types import SamplingParams

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's. The chat endpoint has the engine's default."""


class CompletionRequest(InertInCompletions, GenerationRequest):
    """One or several prompts, and how to continue them."""

    prompt: Inputs = Field(description="Choice `i` of prompt `p` has the index `p * n + i`.")
    max_tokens: int | None = Field(None, ge=1, le=MAX_COUNT, description=f"{DEFAULT_MAX_TOKENS} by default.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report per token; 0 reports the chosen one alone."
    )
    echo: bool | None = Field(None, description="The text begins with the prompt; not together with logprobs.")
    best_of: int | None = Field(None, ge=1, le=MAX_COUNT, description="Only at the value of n.")
    response_format: Annotated[TextFormat | None, only(NO_FORMAT)] = None
    suffix: Annotated[Literal[""] | None, only("nothing is inserted before a suffix here; leave it out")] = None

    _whole_of_completions = field_validator("logprobs", "best_of", mode="before")(whole)

    @field_validator("echo")
    @classmethod
    def _not_with_logprobs(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("logprobs") is not None:
            raise PydanticCustomError(
                "conflict", "not with logprobs: those of a prompt are not computed; send one of them"
            )
        return value

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n") or 1
        if value is not None and value != n:
            raise PydanticCustomError(
                "unsupported", "must be n ({n}): all answers are returned; leave it out and set n", {"n": n}
            )
        return value

    def sampling(self) -> SamplingParams:
        return self.sampling_params(self.max_tokens or DEFAULT_MAX_TOKENS, self.logprobs)
