"""The body of `POST /v1/completions`. Source: `openai.types.completion_create_params`, see `schemas.chat`."""

from __future__ import annotations

from dataclasses import replace
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
    max_tokens: int | None = Field(
        None,
        ge=0,
        le=MAX_COUNT,
        description=f"{DEFAULT_MAX_TOKENS} by default. 0 (the prompt only) is allowed with echo or prompt_logprobs.",
    )
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives to report per token; 0: only the chosen token."
    )
    echo: bool | None = Field(None, description="True: the text and the logprobs begin with the prompt.")
    best_of: int | None = Field(None, ge=1, le=MAX_COUNT, description="Must equal n.")
    response_format: Annotated[TextFormat | None, only(NO_FORMAT)] = None
    suffix: Annotated[Literal[""] | None, only("insertion before a suffix is not supported; leave it out")] = None

    _whole_of_completions = field_validator("logprobs", "best_of", mode="before")(whole)

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        n = info.data.get("n") or 1
        if value is not None and value != n:
            raise PydanticCustomError(
                "unsupported", "must be n ({n}): all answers are returned; leave it out and set n", {"n": n}
            )
        return value

    @property
    def echoed_logprobs(self) -> int | None:
        """Alternatives to report per token of the prompt among `logprobs`; None if the prompt is not among them."""
        return self.logprobs if self.echo else None

    def sampling(self) -> SamplingParams:
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        wanted = [count for count in (self.prompt_logprobs, self.echoed_logprobs) if count is not None]
        return replace(self.sampling_params(limit, self.logprobs), prompt_logprobs=max(wanted, default=None))
