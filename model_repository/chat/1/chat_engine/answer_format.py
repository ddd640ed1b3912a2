"""The noun for how a model writes its answers: where reasoning stands, and how calls of tools are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class XmlParameters(BaseModel):
    """Arguments as tags, one after another: `before_key` KEY `after_key` VALUE `after_value`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_key: str
    after_key: str
    after_value: str


class Writing(BaseModel):
    """How calls are written, as literal text around names and arguments.

    All of them: `before_all`, a call, and for each further one `between` and a call, `after_all`. One call:
    `before_name` NAME `before_arguments` ARGUMENTS `after_arguments`. The markers in it may be special tokens.

    `arguments` says what ARGUMENTS are: a JSON object, or parameters as XML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before_all: str
    before_name: str
    before_arguments: str
    after_arguments: str
    between: str
    after_all: str
    arguments: Literal["json"] | XmlParameters


class Keys(BaseModel):
    """Under what names a JSON object that is a call has its name and its arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str


class CallSyntax(BaseModel):
    """How calls are read, and written.

    Attributes:
        opens: literal texts at each of which calls begin. None: by the pattern of the response template, which ends
            before the first character of the call.
        closes: literal texts that end what one of those began. None: what the response template says, if anything.
        keys: given where a call is a JSON object, alone or in a list. Otherwise its name is the group `name` of the
            response template's pattern, and its arguments follow.
        known_names: whether only the name of a tool that was offered makes a call, because nothing else marks one.
        written: the same for a model that is made to call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    opens: tuple[str, ...] | None = Field(None, min_length=1)
    closes: tuple[str, ...] | None = Field(None, min_length=1)
    keys: Keys | None = None
    known_names: bool = False
    written: Writing


@dataclass(frozen=True, eq=False)
class AnswerFormat:
    """How a model writes its answers.

    Attributes:
        name: for people.
        template: a `response_template` as transformers has it.
        shipped: whether it is the checkpoint's. Then its template finds the beginning of the answer in the prompt by
            itself; one of ours does not.
        tags: what opens and closes reasoning. None: there is none, or the template alone knows.
        reasoning_first: whether an answer begins with reasoning even where nothing has opened it.
        call: how calls are written. None: there are none, or the template alone knows how to read them.
    """

    name: str
    template: Mapping[str, Any]
    shipped: bool = False
    tags: tuple[str, str] | None = None
    reasoning_first: bool = False
    call: CallSyntax | None = None

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """What opens and closes reasoning, as far as it is known."""
        field = self.template["fields"].get("reasoning_content") or {}
        opening, closing = field.get("open"), field.get("close")
        if self.tags is None and isinstance(opening, str) and isinstance(closing, str):
            return opening, closing
        return self.tags

    @property
    def reads_calls(self) -> bool:
        """Whether it knows calls at all."""
        return "tool_calls" in self.template["fields"]
