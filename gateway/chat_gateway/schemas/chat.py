"""The body of `POST /v1/chat/completions`.

Source: `openai.types.chat.completion_create_params`; a test holds the two lists of fields together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas import messages as turns
from chat_gateway.schemas.common import GenerationRequest
from chat_gateway.schemas.effort import EFFORT_KWARGS, Effort
from chat_gateway.schemas.fields import CACHED, User, Whole, only
from chat_gateway.schemas.inert import InertInChat
from chat_gateway.schemas.messages import NO_AUDIO, Messages
from chat_gateway.schemas.tools import (
    AllowedToolsChoice,
    FunctionChoice,
    FunctionName,
    NamedTool,
    OldFunction,
    Tool,
    ToolChoice,
)
from triton_chat.types import ChatOptions, SamplingParams

NO_TEMPLATE: Final = "only the model's own chat template is supported; leave it out"


def goes_on_or_begins(continues: bool | None, info: ValidationInfo) -> bool | None:
    """Of a field after `add_generation_prompt`: the last message goes on, or an answer begins."""
    if continues and info.data.get("add_generation_prompt"):
        raise PydanticCustomError("conflict", "cannot be combined with add_generation_prompt: true; send one of them")
    return continues


_Choice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None
_OldChoice = Literal["none", "auto"] | FunctionName | None


def _conflict(other: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "cannot be combined with {other}; send one of them", {"other": other})


class ChatCompletionRequest(InertInChat, GenerationRequest):
    """A conversation and how to answer it."""

    messages: Messages
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
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="For the chat template, beside the conversation, such as enable_thinking."
    )
    reasoning_effort: Effort | None = Field(
        None, description="Only for a model whose chat template has an effort or a switch for reasoning."
    )
    include_reasoning: bool | None = Field(None, description="False: the answer comes without its reasoning.")

    tools: list[Tool] | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="auto by default, if there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call in an answer.")
    functions: list[OldFunction] | None = Field(
        None, description="Older form of tools; the answer then has function_call in place of tool_calls."
    )
    function_call: FunctionChoice | None = Field(None, description="Older form of tool_choice.")

    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = Field(None, description=CACHED)
    prompt_cache_options: dict[str, Any] | None = Field(None, description=CACHED)
    prompt_cache_retention: Annotated[str, Field(max_length=64)] | None = Field(None, description=CACHED)
    audio: Annotated[None, only(NO_AUDIO)] = None
    chat_template: Annotated[None, only(NO_TEMPLATE)] = None
    metadata: dict[str, Any] | None = Field(None, description="Not used: nothing is stored.")
    modalities: Annotated[
        Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None,
        only('only text is made here; leave it out or send ["text"]'),
    ] = None
    moderation: Annotated[None, only("moderation is not supported; leave it out")] = None
    prediction: dict[str, Any] | None = Field(None, description="Not used: an answer comes as quickly as it can.")
    service_tier: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Not used: all requests are served alike."
    )
    store: bool | None = Field(None, description="Not used: nothing is stored.")
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="Not used: say it in a message.")
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

    @field_validator("functions")
    @classmethod
    def _no_tools_beside(cls, value: list[OldFunction] | None, info: ValidationInfo) -> list[OldFunction] | None:
        others = [name for name in ("tools", "tool_choice") if info.data.get(name)]
        if value and others:
            raise _conflict(others[0])
        return value

    @field_validator("tool_choice")
    @classmethod
    def _allows_what_there_is(cls, value: _Choice, info: ValidationInfo) -> _Choice:
        if isinstance(value, AllowedToolsChoice) and "tools" in info.data:
            known = {tool.function.name for tool in info.data["tools"] or ()}
            unknown = [name for name in value.names if name not in known]
            if unknown:
                sentence = "allows {name}, which is none of the tools"
                raise PydanticCustomError("unknown_tool", sentence, {"name": repr(unknown[0])})
        return value

    @field_validator("function_call")
    @classmethod
    def _needs_functions(cls, value: _OldChoice, info: ValidationInfo) -> _OldChoice:
        if value is not None and info.data.get("tools"):
            raise _conflict("tools")
        if isinstance(value, FunctionName) and not info.data.get("functions", True):
            raise PydanticCustomError("conflict", "requires functions; send both or neither")
        return value

    def to_model(self) -> list[dict[str, object]]:
        """The conversation as the model server takes it."""
        return turns.to_model(self.messages)

    def options(self, effort: Mapping[str, object]) -> ChatOptions:
        """How the conversation becomes a prompt, and what may be called.

        Args:
            effort: `reasoning_effort` as `chat_template_kwargs`; those that the caller sent take precedence.
        """
        kwargs = {**effort, **(self.chat_template_kwargs or {})}
        return {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "chat_template_kwargs": kwargs or None,
            **self._tools(),
        }

    @property
    def calls_functions(self) -> bool:
        """The older form of calls is wanted."""
        return bool(self.functions)

    @property
    def names(self) -> dict[str, str]:
        """The fields of `sampling`, `to_model` and `options` that are called otherwise here."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        sent = self.chat_template_kwargs or {}
        effort = {f"chat_template_kwargs.{name}": "reasoning_effort" for name in EFFORT_KWARGS if name not in sent}
        return {
            "max_tokens": limit,
            "logprobs": "top_logprobs",
            **self.places_of_constraint,
            **self._places_of_tools(),
            **turns.places(self.messages),
            **effort,
        }

    def sampling(self) -> SamplingParams:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        free = {"structured_outputs": None} if self._forces_call else {}
        return self.sampling_params(max_tokens=limit, logprobs=logprobs, **free)

    @property
    def _forces_call(self) -> bool:
        """The answer is then a call, so what else it should be does not apply."""
        choice = self._tools().get("tool_choice")
        return choice == "required" or isinstance(choice, Mapping)

    def _tools(self) -> ChatOptions:
        """Without any, a choice that asks for none of them chooses nothing."""
        if self.functions:
            choice = self.function_call
            return {
                "tools": [function.to_tool() for function in self.functions],
                "tool_choice": choice.to_choice() if isinstance(choice, FunctionName) else choice,
                "parallel_tool_calls": False,
            }
        if self.tools:
            return {
                "tools": [self.tools[index].to_model() for index in self._visible_tools()],
                "tool_choice": self._mode(),
                "parallel_tool_calls": self.parallel_tool_calls,
            }
        return {} if self.tool_choice in (None, "none", "auto") else {"tool_choice": self._mode()}

    def _visible_tools(self) -> list[int]:
        """Those that the model may see, by their indexes."""
        allowed = self.tool_choice.names if isinstance(self.tool_choice, AllowedToolsChoice) else None
        tools = enumerate(self.tools or ())
        return [index for index, tool in tools if allowed is None or tool.function.name in allowed]

    def _mode(self) -> str | dict[str, object] | None:
        match self.tool_choice:
            case NamedTool() as named:
                return named.to_model()
            case AllowedToolsChoice() as some:
                return some.allowed_tools.mode
            case choice:
                return choice

    def _places_of_tools(self) -> dict[str, str]:
        if self.functions:
            functions = range(len(self.functions))
            old = {"tools": "functions", "tool_choice": "function_call", "tool_choice.function": "function_call"}
            return old | {f"tools[{index}].function": f"functions[{index}]" for index in functions}
        visible = self._visible_tools()
        return {f"tools[{here}]": f"tools[{index}]" for here, index in enumerate(visible) if here != index}
