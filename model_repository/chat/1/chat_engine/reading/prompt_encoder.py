"""Messages to token ids and back, by the model's own chat template and tokenizer, on the server."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, UnsupportedModelError
from chat_engine.reading import template_probes as probes
from chat_engine.reading.chat_template import ChatTemplate, Tool
from chat_engine.reading.messages import Message
from chat_engine.reading.special_tokens import TAG, SpecialTokenGuard
from chat_engine.reading.template_loader import load_template
from chat_engine.reading.tokenizer_loader import fast, load_tokenizer
from chat_engine.text.detokenizer import echo_text, text_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it."""

    ids: tuple[int, ...]
    text: str


class PromptEncoder:
    """Prompts of one model. `backend` is its `tokenizers` object, never changed again, so that threads may share it.

    `tokenizer` is what transformers has made of the checkpoint, for what it knows of itself.

    Args:
        tokenizer: the model's, with a chat template or without.
        template: the name of one of its templates.
        split_special_tokens: a special token that is written out in a message is text.
        backend: another than the tokenizer's own.

    Raises:
        ConfigError, UnsupportedModelError: see `template_loader.load_template`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        *,
        split_special_tokens: bool = True,
        backend: Tokenizer | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.backend: Tokenizer = backend or fast(tokenizer)
        self.backend.encode_special_tokens = False  # some settings would take those of the template for text
        self._template = load_template(tokenizer, template)
        self._end_tokens = _end_tokens(tokenizer, self._template, self.backend)
        own = [] if self._template is None else self._own_tokens(self._template)
        self._guard = SpecialTokenGuard(self.backend, own) if split_special_tokens else None

    @classmethod
    def load(cls, config: EngineConfig) -> PromptEncoder:
        """Raises ConfigError or UnsupportedModelError, and OSError when there is no such checkpoint."""
        tokenizer, backend = load_tokenizer(config.model, config.revision)
        return cls(tokenizer, config.chat_template, split_special_tokens=config.split_special_tokens, backend=backend)

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that is used."""
        return self._template

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer by the tokenizer and by what the template closes an assistant's turn with."""
        return frozenset(self._end_tokens)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UnsupportedModelError when every prompt would hold a token that the model has no embedding for."""
        always = {"the post-processor of tokenizer.json": self.encode("", add_special_tokens=True)}
        if self._template is not None:
            always["the chat template"] = self.encode(self._template.opening(), add_special_tokens=False)
        for what, ids in always.items():
            beyond = next((token for token in ids if token >= vocab_size), None)
            if beyond is not None:
                raise UnsupportedModelError(
                    f"{what} writes the token {self.token(beyond)!r} (id {beyond}), but the model has "
                    f"only the tokens 0 to {vocab_size - 1}; use the tokenizer files that belong to these weights"
                )
        beyond_all = sorted(
            token.content
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if token_id >= vocab_size
        )
        if beyond_all:
            log.warning("tokens that the model has no embedding for, refused in prompts: %s", ", ".join(beyond_all))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
    ) -> Rendered:
        """A conversation as token ids and text, ending in the beginning of an answer if wanted.

        Raises InvalidArgumentError where the template refuses or there is none.
        """
        if self._template is None:
            raise InvalidArgumentError("this model has no chat template; send text_input instead", field="messages")
        turns = [message.turn() for message in messages]
        given: dict[str, Any] = {"tools": list(tools), "kwargs": dict(kwargs or {})}
        how: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        text = self._template.render(turns, **given, **how)
        if self._guard is None:
            return Rendered(self.encode(text, add_special_tokens=add_special_tokens), text)
        template = self._template.fitting(turns, tools)
        write = partial(template.write, **how)
        marked = _marked(self._guard, write, {"turns": template.form.turns(turns), **given}, text)
        if marked is None:
            return Rendered(self.encode(text, add_special_tokens=add_special_tokens), text)
        return Rendered(tuple(self._guard.encode(marked, add_special_tokens=add_special_tokens)), text)

    def beginning(
        self,
        messages: Sequence[Message],
        text: str,
        *,
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] | None = None,
        continue_final_message: bool = False,
    ) -> str:
        """What a template has written of the answer in a prompt: what is not there without its beginning.

        Of a message that is to go on, that message: it is the end of the prompt.
        """
        assert self._template is not None
        if continue_final_message:
            content = messages[-1].content.strip()
            return text[text.rfind(content) :] if content else ""
        turns = [message.turn() for message in messages]
        alone = self._template.render(turns, tools=tools, kwargs=kwargs, add_generation_prompt=False)
        return text[len(os.path.commonprefix([text, alone])) :]  # noqa: RUF071 - characters are meant

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of a text, in which special tokens are themselves.

        Of the ways to encode only those of a batch let other threads run meanwhile: for the longest prompts that is a
        second in which the engine would stand still.
        """
        return tuple(self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included; ids that the tokenizer has no text for give none."""
        return text_of(self.backend, token_ids)

    def echo(self, token_ids: Sequence[int]) -> str:
        """The same for a prompt: a character at its end that an answer may complete is the answer's."""
        return echo_text(self.backend, token_ids)

    def token(self, token_id: int) -> str:
        """What a token is called, as people write it."""
        added = self.backend.get_added_tokens_decoder().get(token_id)
        return added.content if added else self.backend.id_to_token(token_id) or ""

    def _own_tokens(self, template: ChatTemplate) -> list[str]:
        """Added tokens by which the template structures a conversation, although they are not marked as special.

        Only those that look like tags: some vocabularies have line breaks among their added tokens.
        """
        prompts = [text for one in template.variants for text in (one.opening(), *one.prompts_with_tools())]
        used = {token for text in prompts for token in self.encode(text, add_special_tokens=False)}
        said = set(self.encode(probes.words(), add_special_tokens=False))
        used = (used | set(self._end_tokens)) - said
        source = "\n".join(one.source for one in template.variants)
        return [
            token.content
            for token_id, token in self.backend.get_added_tokens_decoder().items()
            if TAG.fullmatch(token.content) and (token_id in used or token.content in source)
        ]


def _marked(
    guard: SpecialTokenGuard, write: Callable[..., str], conversation: Mapping[str, Any], text: str
) -> str | None:
    """The rendered text with marks in what callers wrote; None where nothing in it could be a special token."""
    for ends in (True, False):  # fewer marks, where a template looks at the name of a tool
        marked_conversation = _marked_conversation(conversation, guard, ends=ends)
        if marked_conversation == conversation:
            return text if any(map(guard.lurks, _texts(conversation))) else None
        marked = guard.unescape(write(**marked_conversation))
        if guard.unmark(marked) in (text, write(**conversation)):  # twice: it may tell the time
            return marked
    raise InvalidArgumentError(
        "the chat template reacts to a special token that is spelled out in them; remove it", field="messages"
    )


_NAMES = frozenset(("name", "id", "tool_call_id"))


def _marked_conversation(conversation: Mapping[str, Any], guard: SpecialTokenGuard, *, ends: bool) -> dict[str, Any]:
    """With marks in its texts, and around names that are a part of a token.

    In what an assistant said, in special tokens alone: it was an answer, and templates look for its tags.
    """

    def marked(value: Any, name: str = "", *, only_special: bool = False) -> Any:
        if isinstance(value, str):
            return guard.mark(value, only_special=only_special, ends=ends and name in _NAMES)
        if isinstance(value, Mapping):
            return {marked(key): marked(entry, key, only_special=only_special) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [marked(entry, only_special=only_special) for entry in value]
        return value

    def marked_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
        is_answer = turn["role"] == "assistant"
        rest = {name: marked(value, name) for name, value in turn.items() if name not in ("role", "content")}
        content = {"content": marked(turn["content"], only_special=is_answer)} if "content" in turn else {}
        return {"role": turn["role"], **content, **rest}

    kwargs = {name: marked(value) for name, value in conversation["kwargs"].items()}
    turns = [marked_turn(turn) for turn in conversation["turns"]]
    return {"turns": turns, "tools": marked(conversation["tools"]), "kwargs": kwargs}


def _texts(value: object) -> Iterator[str]:
    """Of all that is in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        yield from itertools.chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))


def _end_tokens(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, backend: Tokenizer
) -> dict[int, str]:
    ends = [tokenizer.eos_token]
    if template is not None:
        added = sorted((t.content for t in backend.get_added_tokens_decoder().values()), key=len, reverse=True)
        ends += [
            next((token for token in added if token.strip() and closing.startswith(token)), None)
            for closing in (text for one in template.variants for text in one.closings())
        ]
    ids = {token: backend.token_to_id(token) for token in ends if token}
    return {token_id: token for token, token_id in ids.items() if token_id is not None}
