"""What an answer in one piece says: OpenAI's types, with the reasoning under both of the names that clients read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from openai.types.chat import ChatCompletion, ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_message import FunctionCall
from openai.types.chat.chat_completion_message_function_tool_call import Function
from pydantic import Field

from triton_chat.types import ChatResult, ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class AnswerMessage(ChatCompletionMessage):
    reasoning: str | None = Field(None, description="What the model thought before it answered.")
    reasoning_content: str | None = Field(None, description="The same.")


class AnswerChoice(Choice):
    message: AnswerMessage


class Answer(ChatCompletion):
    choices: list[AnswerChoice]  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a caller wants to read what is no content.

    Args:
        reasoning: it is wanted.
        function_call: a call is wanted in the form that the API had before `tools`.
    """

    reasoning: bool = True
    function_call: bool = False

    def finish_reason(self, given: str) -> FinishReason:
        """The engine has no others than OpenAI."""
        if self.function_call and given == "tool_calls":
            return "function_call"
        return cast("FinishReason", given)

    def message(self, result: ChatResult) -> AnswerMessage:
        """What was made and is wanted; its content is null if there is something else alone."""
        parts: dict[str, Any] = {}
        if result.reasoning and self.reasoning:
            parts |= {"reasoning": result.reasoning, "reasoning_content": result.reasoning}
        if result.tool_calls:
            parts |= self._calls(result.tool_calls)
        content = result.text or None if parts else result.text
        return AnswerMessage(role="assistant", content=content, refusal=None, **parts)

    def _calls(self, calls: Sequence[ToolCall]) -> dict[str, Any]:
        if self.function_call:
            return {"function_call": FunctionCall(name=calls[0].name, arguments=calls[0].arguments)}
        return {"tool_calls": [_call(call) for call in calls]}


def _call(call: ToolCall) -> ChatCompletionMessageFunctionToolCall:
    function = Function(name=call.name, arguments=call.arguments)
    return ChatCompletionMessageFunctionToolCall(id=call.id, type="function", function=function)
