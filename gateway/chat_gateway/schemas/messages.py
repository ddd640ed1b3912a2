"""The turns of a conversation. Source: `openai.types.chat`, see `schemas.chat`; `reasoning` is vLLM's.

Types and shape are checked here; whether a call is known and its arguments are JSON, the model server checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from chat_gateway.schemas.fields import Nothing, Strict, by_tag, only, text_or_list

_TEXT_ONLY: Final = "only parts of type text are supported, not images, audio or files"
NO_AUDIO: Final = "audio is not supported; leave it out"
CACHED: Final = "Not used: the prefix cache works automatically and keeps entries as long as there is room."
_JOINED: Final = "Parts are joined by a line break."
_ROLES: Final = "must be system, developer, user, assistant, tool or function"
_FORMS: Final = "a string or a list of text parts"


class TextPart(Strict):
    type: Annotated[Literal["text"], only(_TEXT_ONLY)]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=CACHED)


_TextParts = Annotated[list[TextPart], Field(min_length=1)]
_Text = Annotated[str | _TextParts, text_or_list(str, _TextParts, _FORMS)]
_MaybeNoParts = Annotated[str | list[TextPart], text_or_list(str, list[TextPart], _FORMS)]


class _Turn(Strict):
    """Fields that are null count as absent, also those of other roles: many clients have one type for all roles."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": "null"}})

    name: str | None = Field(None, description="Name of the speaker, for chat templates that use it.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value

    def _turn(self, role: str, content: str | list[TextPart] | None, **more: object) -> dict[str, object]:
        text = content if isinstance(content, str | None) else "\n".join(part.text for part in content)
        return {"role": role, "content": text, **({"name": self.name} if self.name else {}), **more}


class SpokenMessage(_Turn):
    role: Literal["system", "developer", "user"]
    content: _Text = Field(description=_JOINED)
    tool_calls: Annotated[Nothing | None, only("only a message of the assistant has calls; leave it out")] = None

    def to_model(self) -> dict[str, object]:
        """`developer` is OpenAI's newer word for `system`."""
        return self._turn("system" if self.role == "developer" else self.role, self.content)


class _Echoed(Strict):
    """What a model has said. A client sends back what it got, from here or elsewhere, so more fields are no mistake."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": True})


class CalledFunction(_Echoed):
    name: str
    arguments: Annotated[str, only("must be a string that holds a JSON object")]

    def to_call(self, id: str) -> dict[str, object]:  # noqa: A002 - it is called so
        return {"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CalledTool(_Echoed):
    id: str
    type: Annotated[Literal["function"], only("only calls of functions are supported")] = "function"
    function: CalledFunction

    def to_model(self) -> dict[str, object]:
        return self.function.to_call(self.id)


class AssistantMessage(_Turn, _Echoed):
    """A turn of the model, as it came in an answer or as somebody wrote it."""

    role: Literal["assistant"]
    content: _MaybeNoParts | None = Field(None, description=f"{_JOINED} Null beside calls.")
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = Field(None, description="The older form of a single call.")
    reasoning: str | None = Field(None, description="For chat templates that show the model what it thought.")
    reasoning_content: str | None = Field(None, description="Another name of reasoning.")
    refusal: Annotated[None, only("refusals are not separate here; send the text as content")] = None
    audio: Annotated[None, only(NO_AUDIO)] = None
    annotations: list[Any] | None = Field(None, description="Not used.")

    @field_validator("function_call")
    @classmethod
    def _one_form(cls, value: CalledFunction | None, info: Any) -> CalledFunction | None:
        if value is not None and info.data.get("tool_calls"):
            raise PydanticCustomError("conflict", "cannot be combined with tool_calls; send one of them")
        return value

    def to_model(self, id_of_old_call: str) -> dict[str, object]:
        calls = [call.to_model() for call in self.tool_calls or ()]
        if self.function_call is not None:
            calls = [self.function_call.to_call(id_of_old_call)]
        thought = self.reasoning if self.reasoning is not None else self.reasoning_content
        more: dict[str, object] = {"tool_calls": calls} if calls else {}
        if thought:
            more["reasoning"] = thought
        return self._turn("assistant", self.content if calls else self.content or "", **more)


class ToolMessage(_Turn):
    role: Literal["tool"]
    content: _MaybeNoParts = Field(description=_JOINED)
    tool_call_id: str = Field(description="The id of the call whose result this is.")
    tool_calls: Annotated[Nothing | None, only("only a message of the assistant has calls; leave it out")] = None

    def to_model(self) -> dict[str, object]:
        return self._turn("tool", self.content, tool_call_id=self.tool_call_id)


class FunctionMessage(_Turn):
    """The older form of `ToolMessage`, after a `function_call`."""

    role: Literal["function"]
    content: _MaybeNoParts | None = Field(None, description=_JOINED)
    name: str

    def to_model(self, id_of_old_call: str) -> dict[str, object]:
        return self._turn("tool", self.content or "", tool_call_id=id_of_old_call)


Message = Annotated[
    SpokenMessage | AssistantMessage | ToolMessage | FunctionMessage,
    by_tag(
        "role",
        {
            **dict.fromkeys(("system", "developer", "user"), SpokenMessage),
            "assistant": AssistantMessage,
            "tool": ToolMessage,
            "function": FunctionMessage,
        },
        _ROLES,
    ),
]


def to_model(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The conversation as the model server takes it; an old call and its result get an id."""
    turns = []
    old_call: str | None = None
    for index, message in enumerate(messages):
        match message:
            case AssistantMessage():
                old_call = _id_of_old_call(index) if message.function_call is not None else old_call
                turns.append(message.to_model(_id_of_old_call(index)))
            case FunctionMessage():
                turns.append(message.to_model(old_call or _id_of_old_call(index)))
            case _:
                turns.append(message.to_model())
    return turns


def places(messages: Sequence[Message]) -> dict[str, str]:
    """Where in the request of the model server something old stands, to where the caller wrote it."""
    found: dict[str, str] = {}
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        if isinstance(message, FunctionMessage):
            found[f"{here}.tool_call_id"] = f"{here}.name"
        if isinstance(message, AssistantMessage) and message.function_call is not None:
            found |= dict.fromkeys((f"{here}.tool_calls", f"{here}.tool_calls[0].function"), f"{here}.function_call")
        if isinstance(message, AssistantMessage) and message.reasoning is None:
            found[f"{here}.reasoning"] = f"{here}.reasoning_content"
    return found


def _id_of_old_call(index: int) -> str:
    """Of nine letters and digits, which is what the templates of Mistral's models want of an id."""
    return f"call{index:05d}"
