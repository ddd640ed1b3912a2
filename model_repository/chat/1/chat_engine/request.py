"""The nouns of every engine: what is asked for, and what comes out."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chat_engine.answer_format import AnswerFormat
from chat_engine.errors import ChatError

MAX_SEED = 2**64 - 1
MAX_COUNT = 2**31 - 1  # what a tensor can hold

_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class StructuredOutputs(BaseModel):
    """What an answer must be; exactly one. The names are vLLM's.

    `json` is a JSON schema (2020-12), or true for any object; `grammar` is in llguidance's form of Lark.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    json_: dict[str, Any] | Literal[True] | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: tuple[str, ...] | None = Field(None, min_length=1)
    grammar: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        if len(self.given) != 1:
            found = " and ".join(self.given) or "none"
            raise PydanticCustomError(
                "one_of", "exactly one of json, regex, choice and grammar is required, {found} given", {"found": found}
            )
        return self

    @property
    def given(self) -> list[str]:
        """The names of those that are given, as the caller writes them."""
        return [
            field.alias or name for name, field in type(self).model_fields.items() if getattr(self, name) is not None
        ]


class SamplingParams(BaseModel):
    """How to choose tokens; names and meanings as in the OpenAI and vLLM APIs.

    `temperature` 0 is greedy, and so is `top_p` 0. `top_k` 0 or -1 means all. `logprobs` is the number of alternatives
    to report per token, 0 reporting the chosen one alone; `prompt_logprobs` the same for the tokens of the prompt.
    `max_tokens` 0 makes no answer. Penalties follow OpenAI (presence, frequency; over the answer) and CTRL
    (arXiv:1909.05858; repetition; over prompt and answer). `min_p` is arXiv:2407.01082. `skip_special_tokens` leaves
    those out of the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_tokens: int | None = Field(None, ge=0, le=MAX_COUNT)
    min_tokens: int = Field(0, ge=0, le=MAX_COUNT)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=-1, le=MAX_COUNT)
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    logit_bias: dict[int, _Bias] = Field(default_factory=dict)
    stop: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    logprobs: int | None = Field(None, ge=0)
    prompt_logprobs: int | None = Field(None, ge=0)
    return_token_ids: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    @field_validator("max_tokens", "min_tokens", "top_k", "seed", "logprobs", "prompt_logprobs", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        """1.0 is an integer to JSON, and what Triton's HTTP endpoint makes of it is a double."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0 or self.top_p == 0


@dataclass(frozen=True)
class Constraint:
    """What an answer must follow from its first token on.

    Attributes:
        grammar: in llguidance's form: Lark, or a JSON list of grammars.
        field: of the request, to be named where the grammar cannot be used.
        content: the grammar of the content alone, where the whole has reasoning or calls beside it.
    """

    grammar: str
    field: str
    content: str | None = None


@dataclass(frozen=True)
class Reply:
    """How an answer is to be read: reasoning and calls are taken out of its text.

    Attributes:
        format: the model's.
        tools: what was offered, in OpenAI's shape; arguments are cast by their schemas. Without any, what looks like a
            call is content.
        prefix: what the template has written of the answer, from the beginning of the assistant's turn.
        named: whether the caller chose the tool, so that a call is no reason of its own to end.
        opened: what a call must follow that the model begins by itself.
        single: whether the answer is over with its first call.
        strict: whether one of the tools must have its schema followed, whoever begins the call.
    """

    format: AnswerFormat
    tools: tuple[Mapping[str, Any], ...] = ()
    prefix: str = ""
    named: bool = False
    opened: Constraint | None = None
    single: bool = False
    strict: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """A validated request; every limit has been checked.

    Attributes:
        prompt_ids: the prompt as token ids, at least one.
        max_tokens: resolved; prompt and answer fit into the context. 0: only the prompt is wanted.
        seed: resolved; drawn at random where the caller gave none.
        constraint: what the answer must follow, if anything.
        reply: how the answer is read; None: it is text.
        echo: text that precedes the answer in the output (the prompt, when the caller wants it back).
        adapter: name of the adapter that answers; None: the model itself.
        arrival: monotonic seconds.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    seed: int
    constraint: Constraint | None = None
    reply: Reply | None = None
    echo: str = ""
    stream: bool = True
    adapter: str | None = None
    arrival: float = field(default_factory=time.monotonic)


class FinishReason(str, enum.Enum):
    """Why a sequence ended; the values are those of the wire and of the metrics."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class Alternative:
    """A token and its log-probability under the model's own distribution (before penalties and temperature)."""

    token: str
    bytes: bytes
    logprob: float
    token_id: int


@dataclass(frozen=True)
class TokenLogprobs:
    """The chosen token and the most probable ones, most probable first."""

    chosen: Alternative
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class PromptToken:
    """A token of the prompt and how probable it was, given those before it.

    The first token has none before it, so `logprob` and `rank` are None. Rank 1 is the most probable token.
    """

    token: str
    bytes: bytes
    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a call, OpenAI's streaming shape: the first one of each `index` has id and name, arguments follow.

    `arguments` are the next characters of a JSON object.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class TokenEvent:
    """What a request gets: the text that became final, and the counts so far. The last one says why it ended.

    `text` is the content; where the answer is parsed, `reasoning` and `tool_calls` were taken out of it, and `logprobs`
    belong to the tokens of the content.

    `error` goes with the finish reasons CANCELLED and ERROR. `prompt_tokens` are those that have been scored since the
    last event, `token_ids` those made since then; `prompt_token_ids` comes with the first. Each where it was asked for.
    """

    text: str
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    error: ChatError | None = None
    prompt_tokens: tuple[PromptToken, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    num_reasoning_tokens: int = 0
