"""A checkpoint's chat template: which one, what it wants, and what it does with a conversation; found out at load."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from chat_engine.errors import ConfigError, InvalidArgumentError, UnsupportedModelError, field_name

log = logging.getLogger(__name__)

NO_TEMPLATE = "none"
_DEFAULT = "default"
_REASON = 200  # characters of it that a message shows
# What a probe says as each role: words that no template writes, and that trimming or escaping leaves alone.
_SAID = {"system": "probe instruction 7301", "user": "probe question 7302", "assistant": "probe answer 7303"}

# Roles whose contents are parts; strings come first.
_FORMS = tuple(map(frozenset, ((), _SAID, ("user",), ("user", "system"), ("user", "assistant"))))
_PHRASE = re.compile(r"[^\W_][\w ]{10,60}[^\W_]")  # words without anything that could be escaped
_PHRASES = 20
_PRINTED = re.compile(r"""['"]type['"]: ?['"]text['"]""")

Turn = Mapping[str, object]


class TemplateRefusalError(Exception):
    """The template raised something; its words are the message."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has rendered a probe conversation with the text in it.

    Attributes:
        source: Jinja.
        parts: roles whose content it wants as a list of parts, `[{"type": "text", "text": ...}]`, instead of a string.
        unheard: roles whose text it leaves out of the prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    parts: frozenset[str] = frozenset()
    unheard: frozenset[str] = frozenset()

    def render(
        self, turns: Sequence[Turn], *, add_generation_prompt: bool = True, continue_final_message: bool = False
    ) -> str:
        """The prompt as text.

        Raises:
            InvalidArgumentError: the template refuses the conversation, whatever it raises, or would leave some out.
        """
        said = (turn["role"] for turn in turns if str(turn["content"]).strip())
        lost = next((role for role in said if role in self.unheard), None)
        if lost is not None:
            raise InvalidArgumentError(
                f"the model's chat template leaves out what the role {lost} says", field="messages"
            )
        try:
            text = self._render(turns, add_generation_prompt, continue_final_message)
        except TemplateRefusalError as refusal:
            raise InvalidArgumentError(
                f"the model's chat template refuses them: {refusal}", field="messages"
            ) from refusal
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant" and not _is_in(str(turn["content"]), text):
                raise InvalidArgumentError(
                    "the model's chat template leaves it out of this conversation",
                    field=field_name("messages", index, "content"),
                )
        return text

    def closings(self) -> list[str]:
        """What it writes behind the text of an assistant's turn, at the end of a conversation and within one."""
        conversations = (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant", "user"))
        texts = [text for roles in conversations if (text := self._try(*roles)) is not None]
        return [text.rpartition(_SAID["assistant"])[2].lstrip() for text in texts if _SAID["assistant"] in text]

    def opening(self) -> str:
        """A prompt in which most of its own tokens occur."""
        return self._try("system", "user", "assistant", "user") or self._try("user", "assistant", "user") or ""

    @property
    def probe_texts(self) -> list[str]:
        """What is said in a probe."""
        return list(_SAID.values())

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool, continue_final_message: bool) -> str:
        given: list[dict[str, Any]] = [dict(turn) for turn in turns]
        for turn in given:
            if turn["role"] in self.parts:
                turn["content"] = [{"type": "text", "text": turn["content"]}]
        try:
            text = self.tokenizer.apply_chat_template(
                given,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise TemplateRefusalError(_reason(error)) from error
        assert isinstance(text, str)
        return text

    def probe(self, *roles: str) -> str:
        """A conversation in which each role says what a probe says. Raises TemplateRefusalError."""
        turns = [{"role": role, "content": _SAID[role]} for role in roles]
        return self._render(turns, roles[-1] == "user", False)

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
        return {role for role in roles if _SAID[role] in text}

    def loses(self, *roles: str) -> set[str]:
        """Those of the roles that it takes and leaves out."""
        return set() if self._try(*roles) is None else set(roles) - self.hears(*roles)


def load_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> ChatTemplate | None:
    """The template that the checkpoint, or the settings by `name`, chooses; None where there is none.

    Raises:
        ConfigError: there is no template of that name, or there are several and no name.
        UnsupportedModelError: it does not render one question, or leaves the question out.
    """
    source = _choose(tokenizer.chat_template, name)
    if source is None:
        return None
    template = _that_hears_a_question(tokenizer, source)
    unheard = template.loses("system", "user") | template.loses("user", "assistant", "user")
    if "user" in unheard:
        raise UnsupportedModelError("the chat template leaves a user's text out of a conversation of several turns")
    if unheard:
        log.warning(
            "the chat template leaves out what %s says; such messages are refused", " and ".join(sorted(unheard))
        )
    return ChatTemplate(tokenizer, source, template.parts, frozenset(unheard))


def _is_in(content: str, text: str) -> bool:
    """Whether some phrase of a content is there. Templates trim, escape, and take out short commands."""
    phrases = [found[0] for found in islice(_PHRASE.finditer(content), _PHRASES)]
    return not phrases or any(phrase in text for phrase in phrases)


def _choose(templates: str | Mapping[str, str] | None, name: str | None) -> str | None:
    if name == NO_TEMPLATE or (not templates and name is None):
        return None
    named = {_DEFAULT: templates} if isinstance(templates, str) else dict(templates or {})
    chosen = name or (_DEFAULT if len(named) > 1 else next(iter(named)))
    if chosen not in named:
        there = ", ".join(sorted(named)) or NO_TEMPLATE
        raise ConfigError(f"chat_template: the checkpoint has no chat template {chosen}; choose one of: {there}")
    return named[chosen]


def _that_hears_a_question(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate:
    """With the form of contents in which a question reaches the prompt, and the texts of most other roles too."""
    templates = [ChatTemplate(tokenizer, source, form) for form in _FORMS]
    best = max(templates, key=lambda template: ("user" in (heard := _heard(template)), len(heard)))
    if "user" in _heard(best):
        return best
    advice = f"mend it in tokenizer_config.json or chat_template.jinja, or set chat_template to {NO_TEMPLATE}"
    try:
        templates[0].probe("user")
    except TemplateRefusalError as refusal:
        raise UnsupportedModelError(f"the chat template cannot render one question: {refusal}; {advice}") from refusal
    raise UnsupportedModelError(f"the chat template leaves the question out of the prompt; {advice}")


def _heard(template: ChatTemplate) -> set[str]:
    conversations = (("user",), ("system", "user"), ("user", "assistant", "user"))
    return set().union(*(template.hears(*roles) for roles in conversations))


def _reason(error: Exception) -> str:
    """In one line, without the names of files."""
    words = " ".join(str(error).split())[:_REASON]
    return words if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {words}"
