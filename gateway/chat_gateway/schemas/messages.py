"""The turns of a conversation. Source: `openai.types.chat`, see `schemas.chat`; `reasoning` is vLLM's.

Types and shape are checked here, and whether an old result follows its call; whether a call with an id is known, and
arguments are JSON, the model server checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from chat_gateway.schemas.fields import CACHED, Nothing, Strict, by_tag, only, text_or_list

_TEXT_ONLY: Final = "only parts of type text are supported, not images, audio or files"
NO_AUDIO: Final = "audio is not supported; leave it out"
_JOINED: Final = "Parts are joined by a line break."
_ROLES: Final = "must be system, developer, user, assistant, tool or function"
_FORMS: Final = "a string or a list of text parts"


class _WithoutNulls(Strict):
    """Fields that are null count as absent, whatever their names."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value


class TextPart(_WithoutNulls):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": "null"}})

    type: Annotated[Literal["text"], only(_TEXT_ONLY)]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = Field(None, description=CACHED)
    cache_control: dict[str, Any] | None = Field(None, description=CACHED)


_TextParts = Annotated[list[TextPart], Field(min_length=1)]
_Text = Annotated[str | _TextParts, text_or_list(str, _TextParts, _FORMS)]
_MaybeNoParts = Annotated[str | list[TextPart], text_or_list(str, list[TextPart], _FORMS)]


class _Turn(_WithoutNulls):
    """Fields of other roles may be null: many clients have one type for all roles."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": {"type": "null"}})

    name: str | None = Field(None, description="Name of the speaker, for chat templates that use it.")

    def _turn(self, role: str, content: str | list[TextPart] | None, **more: object) -> dict[str, object]:
        text = content if isinstance(content, str | None) else _joined(part.text for part in content)
        return {"role": role, "content": text, **({"name": self.name} if self.name else {}), **more}


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(texts)


class SpokenMessage(_Turn):
    role: Literal["system", "developer", "user"]
    content: _Text = Field(description=_JOINED)
    tool_calls: Annotated[Nothing | None, only("only a message of the assistant has calls; leave it out")] = None

    def to_model(self) -> dict[str, object]:
        """`developer` is OpenAI's newer word for `system`."""
        return self._turn("system" if self.role == "developer" else self.role, self.content)


class _Echoed(_WithoutNulls):
    """Part of an answer, from here or another server, that the client sends back; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": True})


class CalledFunction(_Echoed):
    name: str
    arguments: Annotated[str | dict[str, Any], only("must be a JSON object, or a string that holds one")] = "{}"

    def to_call(self, id: str) -> dict[str, object]:  # noqa: A002 - it is called so
        return {"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CalledTool(_Echoed):
    id: str
    type: Annotated[Literal["function"], only("only calls of functions are supported")] = "function"
    function: CalledFunction

    def to_model(self) -> dict[str, object]:
        return self.function.to_call(self.id)


class EchoedPart(_Echoed):
    """A part of an assistant's content. One of another type than text and refusal, such as thinking, is ignored."""

    type: str
    text: Any = Field(None, description="Of the type text: a string.")
    refusal: Any = Field(None, description="Of the type refusal: a string.")

    @property
    def texts(self) -> list[str]:
        text = {"text": self.text, "refusal": self.refusal}.get(self.type)
        return [text] if isinstance(text, str) else []


_EchoedParts = Annotated[str | list[EchoedPart], text_or_list(str, list[EchoedPart], _FORMS)]


class AssistantMessage(_Turn, _Echoed):
    """A turn of the model, as it came in an answer or as somebody wrote it."""

    role: Literal["assistant"]
    content: _EchoedParts | None = Field(
        None, description=f"{_JOINED} Only those of type text and refusal are used. Null beside calls."
    )
    tool_calls: list[CalledTool] | None = None
    function_call: CalledFunction | None = Field(None, description="The older form of a single call.")
    reasoning: Any = Field(
        None, description="For chat templates that show the model what it thought. Used if it is a string."
    )
    reasoning_content: Any = Field(None, description="Another name of reasoning.")
    refusal: Any = Field(None, description="If it is a string, it is part of the content.")
    audio: Any = Field(None, description="Not used.")
    annotations: Any = Field(None, description="Not used.")

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
        thought = getattr(self, self.field_of_reasoning)
        more: dict[str, object] = {"tool_calls": calls} if calls else {}
        if thought and isinstance(thought, str):
            more["reasoning"] = thought
        texts = self._texts()
        return self._turn("assistant", _joined(texts) if texts or not calls else None, **more)

    @property
    def field_of_reasoning(self) -> str:
        """The one that is used."""
        return "reasoning" if isinstance(self.reasoning, str) else "reasoning_content"

    def _texts(self) -> list[str]:
        match self.content:
            case None:
                said = []
            case str() as text:
                said = [text]
            case parts:
                said = [text for part in parts for text in part.texts]
        return [*said, self.refusal] if self.refusal and isinstance(self.refusal, str) else said


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


def _check_old_results(messages: list[Message]) -> list[Message]:
    """Without ids, a result is that of the last `function_call`, which it follows, and whose name it has."""
    called: str | None = None
    for index, message in enumerate(messages):
        match message:
            case AssistantMessage(function_call=CalledFunction(name=name)):
                called = name
            case FunctionMessage(name=name):
                if name != called:
                    raise _no_such_call(index, name, called)
                called = None
            case _:
                pass
    return messages


def _no_such_call(index: int, name: str, called: str | None) -> ValidationError:
    sentence = (
        "must follow an assistant's message with a function_call, of which it is the only result"
        if called is None
        else "must be the name of the function_call before it, {called}, not {name}"
    )
    error = PydanticCustomError("old_result", sentence, {"called": repr(called), "name": repr(name)})
    return ValidationError.from_exception_data(
        "messages", [InitErrorDetails(type=error, loc=(index, "name"), input=name)], hide_input=True
    )


Messages = Annotated[list[Message], Field(min_length=1), AfterValidator(_check_old_results)]


def to_model(messages: Sequence[Message]) -> list[dict[str, object]]:
    """The conversation as the model server takes it; an old call and its result get an id."""
    turns = []
    old_call = ""
    for index, message in enumerate(messages):
        match message:
            case AssistantMessage():
                old_call = _id_of_old_call(index) if message.function_call is not None else old_call
                turns.append(message.to_model(_id_of_old_call(index)))
            case FunctionMessage():
                turns.append(message.to_model(old_call))
            case _:
                turns.append(message.to_model())
    return turns


def places(messages: Sequence[Message]) -> dict[str, str]:
    """Where in the request of the model server something old stands, to where the caller wrote it."""
    found: dict[str, str] = {}
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        if isinstance(message, AssistantMessage) and message.function_call is not None:
            found |= dict.fromkeys((f"{here}.tool_calls", f"{here}.tool_calls[0].function"), f"{here}.function_call")
        if isinstance(message, AssistantMessage):
            found[f"{here}.reasoning"] = f"{here}.{message.field_of_reasoning}"
    return found


def _id_of_old_call(index: int) -> str:
    """Of nine letters and digits, which is what the templates of Mistral's models want of an id."""
    return f"call{index:05d}"
