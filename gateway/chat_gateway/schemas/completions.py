"""The body of `POST /v1/completions`. Source: `openai.types.completion_create_params`, see `schemas.chat`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.common import GenerationRequest
from chat_gateway.schemas.fields import Whole, only
from chat_gateway.schemas.inert import InertInCompletions
from chat_gateway.schemas.inputs import Inputs
from triton_chat.types import SamplingParams

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's. The chat endpoint has the engine's default."""


class CompletionRequest(InertInCompletions, GenerationRequest):
    """One or several prompts, and how to continue them."""

    prompt: Inputs = Field(description="Choice `i` of prompt `p` has the index `p * n + i`.")
    max_tokens: Whole | None = Field(
        None,
        description=f"{DEFAULT_MAX_TOKENS} by default. 0 (the prompt only) is allowed with echo or prompt_logprobs.",
    )
    logprobs: Whole | None = Field(None, description="Alternatives to report per token; 0: only the chosen token.")
    echo: bool | None = Field(None, description="True: the text and the logprobs begin with the prompt.")
    best_of: Whole | None = Field(None, description="Must equal n.")
    suffix: Annotated[Literal[""] | None, only("insertion before a suffix is not supported; leave it out")] = None

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

    @property
    def names(self) -> dict[str, str]:
        """The engine's fields that are called otherwise here."""
        scored = "logprobs" if self._scored_by_echo else "prompt_logprobs"
        prompt = {"text_input": "prompt", "prompt_token_ids": "prompt", "prompt_logprobs": scored}
        return prompt | self.places_of_constraint

    def sampling(self) -> SamplingParams:
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        scored = self.echoed_logprobs if self._scored_by_echo else self.prompt_logprobs
        return self.sampling_params(max_tokens=limit, prompt_logprobs=scored)

    @property
    def _scored_by_echo(self) -> bool:
        """Whether `echo` asks for more of the prompt's log-probabilities than `prompt_logprobs`.

        Not where that is negative: it goes to the engine, to be refused.
        """
        echoed, asked = self.echoed_logprobs, self.prompt_logprobs
        return echoed is not None and (asked is None or 0 <= asked < echoed)
