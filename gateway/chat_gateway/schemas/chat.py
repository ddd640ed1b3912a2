"""The body of `POST /v1/chat/completions`.

Source: `openai.types.chat.completion_create_params`; a test holds the two lists of fields together.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.common import NO_FORMAT, GenerationRequest, TextFormat
from chat_gateway.schemas.fields import (
    NoSettings,
    Nothing,
    Strict,
    User,
    Whole,
    only,
    text_or_list,
)
from chat_gateway.schemas.inert import InertInChat
from triton_chat.types import SamplingParams

_TEXT_ONLY: Final = "only parts of type text are supported, not images, audio or files"
NO_TOOLS: Final = "tools are not supported; leave it out"
_NO_AUDIO: Final = "audio is not supported; leave it out"
_CACHED: Final = "Not used: the prefix cache works automatically and keeps entries as long as there is room."
NO_TEMPLATE: Final = "only the model's own chat template is supported; leave it out"


def goes_on_or_begins(continues: bool | None, info: ValidationInfo) -> bool | None:
    """Of a field after `add_generation_prompt`: the last message goes on, or an answer begins."""
    if continues and info.data.get("add_generation_prompt"):
        raise PydanticCustomError("conflict", "cannot be combined with add_generation_prompt: true; send one of them")
    return continues


class TextPart(Strict):
    type: Annotated[Literal["text"], only(_TEXT_ONLY)]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=_CACHED)


_TextParts = Annotated[list[TextPart], Field(min_length=1)]


class Message(Strict):
    """One turn. The fields that take only nothing are those which an answer of the API has, so it can be sent back."""

    role: Annotated[
        Literal["system", "developer", "user", "assistant"],
        only("must be system, developer, user or assistant; tools and functions are not supported"),
    ]
    content: Annotated[str | _TextParts, text_or_list(str, _TextParts, "a string or a list of text parts")] = Field(
        description="Parts are joined by a line break."
    )
    name: str | None = Field(None, description="Name of the speaker, for chat templates that use it.")
    refusal: Annotated[None, only("refusals are not separate here; send the text as content")] = None
    audio: Annotated[None, only(_NO_AUDIO)] = None
    tool_calls: Annotated[Nothing | None, only(NO_TOOLS)] = None
    function_call: Annotated[None, only(NO_TOOLS)] = None
    annotations: Annotated[Nothing | None, only("annotations are not supported; leave it out")] = None

    def to_model(self) -> dict[str, str]:
        """As the model's chat template knows it. `developer` is OpenAI's newer word for `system`."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": role, "content": text, **({"name": self.name} if self.name else {})}


class ChatCompletionRequest(InertInChat, GenerationRequest):
    """A conversation and how to answer it."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(
        None,
        description="Newer name of max_tokens; takes precedence over it. Without either, the engine's default applies.",
    )
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Whole | None = Field(None, description="Alternatives to report per token; with logprobs: true.")
    safety_identifier: User | None = None
    add_generation_prompt: bool | None = Field(
        None, description="False: the prompt ends with the last message, without the header of an answer."
    )
    continue_final_message: bool | None = Field(None, description="True: the answer continues the last message.")

    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = Field(None, description=_CACHED)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=_CACHED)
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = Field(None, description=_CACHED)
    audio: Annotated[None, only(_NO_AUDIO)] = None
    chat_template: Annotated[None, only(NO_TEMPLATE)] = None
    chat_template_kwargs: Annotated[NoSettings | None, only(NO_TEMPLATE)] = None
    function_call: Annotated[Literal["none"] | None, only(NO_TOOLS)] = None
    functions: Annotated[Nothing | None, only(NO_TOOLS)] = None
    metadata: dict[str, Any] | None = Field(None, description="Not used: nothing is stored.")
    modalities: Annotated[
        Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None,
        only('only text is made here; leave it out or send ["text"]'),
    ] = None
    moderation: Annotated[None, only("moderation is not supported; leave it out")] = None
    parallel_tool_calls: bool | None = Field(None, description="Not used: there are no tools.")
    prediction: Annotated[None, only("predicted outputs are not supported; leave it out")] = None
    reasoning_effort: Annotated[Literal["none"] | None, only("reasoning effort is not supported; leave it out")] = None
    response_format: Annotated[TextFormat | None, only(NO_FORMAT)] = None
    service_tier: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Not used: all requests are served alike."
    )
    store: bool | None = Field(None, description="Not used: nothing is stored.")
    tool_choice: Annotated[Literal["none"] | None, only(NO_TOOLS)] = None
    tools: Annotated[Nothing | None, only(NO_TOOLS)] = None
    verbosity: Annotated[Literal["medium"] | None, only("verbosity is not supported; leave it out or send medium")] = (
        None
    )
    web_search_options: Annotated[None, only("web search is not supported; leave it out")] = None

    @field_validator("max_tokens", "max_completion_tokens")
    @classmethod
    def _answers(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise PydanticCustomError(
                "empty_answer", "must be at least 1: a chat has an answer; /v1/completions takes a prompt alone"
            )
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _goes_on_or_begins(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        return goes_on_or_begins(value, info)

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise PydanticCustomError("conflict", "requires logprobs: true; send both or neither")
        return value

    def to_model(self) -> list[dict[str, str]]:
        """The conversation as the engine takes it."""
        return [message.to_model() for message in self.messages]

    @property
    def names(self) -> dict[str, str]:
        """The fields of `sampling` that are called otherwise here."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {"max_tokens": limit, "logprobs": "top_logprobs"}

    def sampling(self) -> SamplingParams:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.sampling_params(max_tokens=limit, logprobs=(self.top_logprobs or 0) if self.logprobs else None)
