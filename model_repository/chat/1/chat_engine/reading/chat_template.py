"""A checkpoint's chat template: what it is given, what it knows, and what it must not leave out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from chat_engine.errors import InvalidArgumentError, field_name
from chat_engine.reading import template_probes as probes
from chat_engine.reading.checks import show_name
from chat_engine.reading.template_form import Form, Turn

_REASON = 200  # characters of it that a message shows
_PHRASE = re.compile(r"[^\W_][\w ]{10,60}[^\W_]")  # words without anything that could be escaped
_PHRASES = 20
_PRINTED = re.compile(r"""['"]type['"]: ?['"]text['"]""")

Tool = Mapping[str, Any]
"""OpenAI's shape, with a schema of the parameters."""

OWN_VARIABLES = frozenset((
    "messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "sanitize_control_tokens", "tokenizer_kwargs",
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens",
))  # fmt: skip
"""What a template is given by the server, or by the functions that call it."""


class TemplateRefusalError(Exception):
    """The template raised something; its words are the message."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has rendered a probe conversation with the text in it; see `template_loader`.

    Attributes:
        source: Jinja.
        form: how it wants the turns.
        unheard: roles whose text it leaves out of the prompt.
        reads: names of variables that callers may give it (`chat_template_kwargs`).
        shows_tools: tools that it is given reach the prompt.
        shows_calls: so do an assistant's calls of tools, and what the tools returned.
        for_tools: the checkpoint's other template, for conversations with tools.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    form: Form = field(default_factory=Form)
    unheard: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    shows_tools: bool = False
    shows_calls: bool = False
    for_tools: ChatTemplate | None = None

    @property
    def variants(self) -> tuple[ChatTemplate, ...]:
        """Itself, and the one for tools where there is one."""
        return (self,) if self.for_tools is None else (self, self.for_tools)

    def fitting(self, turns: Sequence[Turn], tools: Sequence[Tool] = ()) -> ChatTemplate:
        """The variant for a conversation."""
        if self.for_tools is not None and (tools or (not self.shows_calls and any(map(_has_calls, turns)))):
            return self.for_tools
        return self

    def render(
        self,
        turns: Sequence[Turn],
        *,
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt as text.

        Raises:
            InvalidArgumentError: the template refuses the conversation, whatever it raises, would leave some out, or
                does not read one of the kwargs.
        """
        how: dict[str, Any] = {
            "tools": tools,
            "kwargs": kwargs,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        template = self.fitting(turns, tools)
        if template is not self:
            return template.render(turns, **how)
        self._check_kwargs(kwargs or {})
        self._check_heard(turns, tools)
        text = self.write(self.form.turns(turns), **how)
        _check_said(turns, text)
        return text

    def write(self, turns: Sequence[Turn], **how: Any) -> str:
        """What it makes of turns in its own form. Raises InvalidArgumentError, where it raises anything."""
        try:
            return self._render(turns, **how)
        except TemplateRefusalError as refusal:
            raise InvalidArgumentError(
                f"the model's chat template refuses them: {refusal}", field="messages"
            ) from refusal

    def _check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        """Raises InvalidArgumentError for one that the template does not read, or that is not the caller's to give."""
        for name in kwargs:
            place = field_name("chat_template_kwargs", show_name(name))
            if name in OWN_VARIABLES:
                raise InvalidArgumentError("set by the server; leave it out", field=place)
            if name not in self.reads:
                there = ", ".join(sorted(self.reads)) or "none"
                raise InvalidArgumentError(
                    f"the model's chat template does not read it; it reads: {there}", field=place
                )

    def _check_heard(self, turns: Sequence[Turn], tools: Sequence[Tool]) -> None:
        if tools and not self.shows_tools:
            raise InvalidArgumentError("the model's chat template does not show tools to the model", field="tools")
        for index, turn in enumerate(turns):
            if _has_calls(turn) and not self.shows_calls:
                raise InvalidArgumentError(
                    "the model's chat template leaves out calls of tools or what they return",
                    field=field_name("messages", index, "tool_calls" if "tool_calls" in turn else "role"),
                )
        said = (self.form.role(turn["role"]) for turn in turns if turn["content"].strip())
        lost = next((role for role in said if role in self.unheard), None)
        if lost is not None:
            raise InvalidArgumentError(
                f"the model's chat template leaves out what the role {lost} says", field="messages"
            )

    def _render(
        self,
        turns: Sequence[Turn],
        *,
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """By transformers' own function, but not through the tokenizer's, which takes away contents that are null."""
        offered: list[Any] = self.form.tools(tools)
        try:
            text = render_jinja_template(
                [[dict(turn) for turn in turns]],
                tools=offered or None,
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.tokenizer.special_tokens_map, **(kwargs or {})},
            )[0][0]
        except Exception as error:  # a template is a program, and may raise anything
            raise TemplateRefusalError(_reason(error)) from error
        assert isinstance(text, str)
        return text

    # What a probe tells of it.

    def closings(self) -> list[str]:
        """What it writes behind the text of an assistant's turn, at the end of a conversation and within one."""
        conversations = (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user"))
        texts = [text for roles in conversations if (text := self._try(*roles)) is not None]
        said = probes.SAID["assistant"]
        return [text.rpartition(said)[2].lstrip() for text in texts if said in text]

    def opening(self) -> str:
        """A prompt in which most of its own tokens occur."""
        return self._try("system", "user", "assistant", "user") or self._try("user", "assistant", "user") or ""

    def prompts_with_tools(self) -> list[str]:
        """Prompts in which the tokens occur that it has for tools and reasoning."""
        tools = (probes.TOOL,) if self.shows_tools else ()
        texts = [self.try_turns(turns, tools) for turns in probes.conversations_with_calls()]
        return [text for text in texts if text is not None]

    def probe(self, *roles: str) -> str:
        """A conversation in which each role says what a probe says. Raises TemplateRefusalError."""
        turns = self.form.turns(probes.turns_of(roles))
        return self._render(turns, add_generation_prompt=roles[-1] == "user")

    def try_turns(self, turns: Sequence[Turn], tools: Sequence[Tool] = (), *, ended: bool = False) -> str | None:
        """The prompt of a probe, or the conversation if it has ended; None where the template refuses it."""
        try:
            return self._render(self.form.turns(turns), tools=tools, add_generation_prompt=not ended)
        except TemplateRefusalError:
            return None

    def _try(self, *roles: str) -> str | None:
        try:
            return self.probe(*roles)
        except TemplateRefusalError:
            return None

    def hears(self, *roles: str) -> set[str]:
        """Those of the roles whose text it writes, as text and not as a list of parts is printed."""
        text = self._try(*roles)
        if text is None or _PRINTED.search(text):
            return set()
        return {role for role in roles if probes.SAID[role] in text}

    def loses(self, *roles: str) -> set[str]:
        """Those of the roles that it takes and leaves out."""
        return set() if self._try(*roles) is None else set(roles) - self.hears(*roles)


def _has_calls(turn: Turn) -> bool:
    return turn["role"] == "tool" or "tool_calls" in turn


def _check_said(turns: Sequence[Turn], text: str) -> None:
    """That the caller misses nothing in the prompt.

    But for what an assistant has said and thought: templates leave out the thoughts of earlier turns.
    """
    place = 0
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            found = _place_of(turn["content"], text, place)
            if found is None:
                raise _left_out("messages", index, "content")
            place = found
        for number, call in enumerate(turn.get("tool_calls", ())):
            if not any(name in text for name in _spellings(call["function"]["name"])):
                raise _left_out("messages", index, "tool_calls", number)


def _left_out(*place: str | int) -> InvalidArgumentError:
    return InvalidArgumentError(
        "the model's chat template leaves it out of this conversation", field=field_name(*place)
    )


def _place_of(content: str, text: str, begin: int) -> int | None:
    """Where some phrase of a content is, best from `begin` on: the turns stand in their order.

    Templates trim, escape, and take out short commands.
    """
    phrases = [found[0] for found in islice(_PHRASE.finditer(content), _PHRASES)]
    if not phrases:
        return begin
    for phrase in phrases:
        if (place := text.find(phrase, begin)) >= 0:
            return place
    return begin if any(spelling in text for phrase in phrases for spelling in _spellings(phrase)) else None


def _spellings(words: str) -> set[str]:
    """As they are, and within JSON."""
    return {words, *(json.dumps(words, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))}


def _reason(error: Exception) -> str:
    """In one line, without the names of files."""
    words = " ".join(str(error).split())[:_REASON]
    return words if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {words}"
