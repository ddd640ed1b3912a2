"""How to answer: the model, the system prompt and the sampling parameters, as the sidebar has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, get_type_hints

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

_OPENAIS: Final = frozenset(CompletionCreateParamsBase.__annotations__)
"""What the openai package knows by name. All else is an extension, which the gateway knows."""


Document = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Shown:
    """How the sidebar shows a parameter.

    Attributes:
        label: its name.
        text: what it does.
        always: whether it is seen without a click.
    """

    label: str
    text: str
    always: bool = False


def _control(label: str, text: str, *, always: bool = False) -> Any:
    return field(default=None, metadata={"shown": Shown(label, text, always)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """None leaves a setting to the model's own default: it is not sent. What a value may be, the engine decides.

    The one definition of the page: a field here is a control of the sidebar and a field of the request.
    """

    temperature: float | None = _control("Temperature", "0: always the likeliest token", always=True)
    top_p: float | None = _control(
        "Top p", "Only the likeliest tokens that add up to this probability, from 0 to 1", always=True
    )
    max_tokens: int | None = _control("Max tokens", "The longest the answer may be", always=True)
    seed: int | None = _control("Seed", "The same number gives the same answer again", always=True)
    top_k: int | None = _control("Top k", "Only this many of the likeliest tokens")
    min_p: float | None = _control("Min p", "No tokens below this share of the likeliest one's probability")
    presence_penalty: float | None = _control("Presence", "Against tokens that have occurred")
    frequency_penalty: float | None = _control("Frequency", "Against tokens, the more often they occurred")
    repetition_penalty: float | None = _control("Repetition", "Above 1: against tokens seen before")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the openai package's `create`."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        extras = {name: given.pop(name) for name in given.keys() - _OPENAIS}
        return given | ({"extra_body": extras} if extras else {})


@dataclass(frozen=True, slots=True)
class Control:
    """A sampling parameter that the page can set."""

    name: str
    is_whole: bool
    shown: Shown


def _controls() -> tuple[Control, ...]:
    kinds = get_type_hints(Sampling)
    return tuple(Control(one.name, kinds[one.name] == int | None, one.metadata["shown"]) for one in fields(Sampling))


CONTROLS: Final = _controls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    model: str | None = None
    """None as long as the gateway has not told which there are: then its first one."""
    system: str = ""
    sampling: Sampling = Sampling()
    tools: tuple[Document, ...] = ()
    """What the model may call."""
    schema: Document | None = None
    """A JSON schema that the answer must follow."""
    thinking: bool | None = None
    """Whether the model thinks first; None leaves it to its chat template."""
    problem: str = ""
    """A sentence where the sidebar holds what cannot be sent."""

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the openai package's `create`, apart from model and messages."""
        arguments = self.sampling.arguments()
        if self.tools:
            arguments["tools"] = list(self.tools)
        if self.schema is not None:
            format_ = {"name": "answer", "strict": True, "schema": self.schema}
            arguments["response_format"] = {"type": "json_schema", "json_schema": format_}
        if self.thinking is not None:
            extras = {"chat_template_kwargs": {"enable_thinking": self.thinking}}
            arguments["extra_body"] = arguments.get("extra_body", {}) | extras
        return arguments
