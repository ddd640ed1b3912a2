"""A checkpoint's chat template: which one, what it wants, and what it does with a conversation; found out at load."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from chat_engine.errors import ConfigError, InvalidRequestError, UnsupportedModelError

log = logging.getLogger(__name__)

NO_TEMPLATE = "none"
_DEFAULT = "default"
_REASON = 200  # characters of it that a message shows
# What a probe says as each role: words that no template writes, and that trimming or escaping leaves alone.
_SAID = {"system": "probe instruction 7301", "user": "probe question 7302", "assistant": "probe answer 7303"}

Turn = Mapping[str, object]


class TemplateRefusalError(Exception):
    """The template raised something; its words are the message."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template that has rendered a probe conversation with the text in it.

    Attributes:
        source: Jinja.
        parts: whether it wants a content as a list of parts, `[{"type": "text", "text": ...}]`, instead of a string.
        unheard: roles whose text it leaves out of the prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    parts: bool = False
    unheard: frozenset[str] = frozenset()

    def render(
        self, turns: Sequence[Turn], *, add_generation_prompt: bool = True, continue_final_message: bool = False
    ) -> str:
        """The prompt as text.

        Raises:
            InvalidRequestError: the template refuses the conversation, whatever it raises, or would leave some out.
        """
        lost = next((turn["role"] for turn in turns if turn["role"] in self.unheard), None)
        if lost is not None:
            raise InvalidRequestError(f"messages: the model's chat template leaves out what the role {lost} says")
        try:
            return self._render(turns, add_generation_prompt, continue_final_message)
        except TemplateRefusalError as refusal:
            raise InvalidRequestError(f"messages: the model's chat template refuses them: {refusal}") from refusal

    def closing(self) -> str:
        """What it writes behind the text of an assistant's turn at the end of a conversation."""
        text = self._try("user", "assistant")
        return "" if text is None else text.rpartition(_SAID["assistant"])[2]

    def opening(self) -> str:
        """A prompt in which most of its own tokens occur."""
        return self._try("system", "user", "assistant", "user") or self._try("user", "assistant", "user") or ""

    @property
    def probe_texts(self) -> list[str]:
        """What is said in a probe."""
        return list(_SAID.values())

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool, continue_final_message: bool) -> str:
        given: list[dict[str, Any]] = [dict(turn) for turn in turns]
        for turn in given if self.parts else ():
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

    def loses(self, *roles: str) -> set[str]:
        """Those of the roles that it takes and leaves out."""
        text = self._try(*roles)
        return set() if text is None else {role for role in roles if _SAID[role] not in text}


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
    """With the form of contents in which a question reaches the prompt."""
    refusals = []
    for roles in (("user",), ("system", "user")):
        for parts in (False, True):
            template = ChatTemplate(tokenizer, source, parts)
            try:
                if _SAID["user"] in template.probe(*roles):
                    return template
            except TemplateRefusalError as refusal:
                refusals.append(refusal)
    advice = f"mend it in tokenizer_config.json or chat_template.jinja, or set chat_template to {NO_TEMPLATE}"
    if refusals:
        raise UnsupportedModelError(f"the chat template cannot render one question: {refusals[0]}; {advice}")
    raise UnsupportedModelError(f"the chat template leaves the question out of the prompt; {advice}")


def _reason(error: Exception) -> str:
    """In one line, without the names of files."""
    words = " ".join(str(error).split())[:_REASON]
    return words if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {words}"
