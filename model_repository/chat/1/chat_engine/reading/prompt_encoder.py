"""Messages to token ids and back, by the model's own chat template and tokenizer, on the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, UnsupportedModelError
from chat_engine.reading.chat_template import ChatTemplate, load_template
from chat_engine.reading.special_tokens import TAG, SpecialTokenGuard
from chat_engine.reading.tokenizer_loader import fast, load_tokenizer
from chat_engine.text.detokenizer import echo_text, text_of

log = logging.getLogger(__name__)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str
    name: str | None = None


MESSAGES = TypeAdapter(list[Message])


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
        ConfigError, UnsupportedModelError: see `chat_template.load_template`.
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
    def template(self) -> str | None:
        """The chat template that is used."""
        return self._template.source if self._template else None

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
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
    ) -> Rendered:
        """A conversation as token ids and text, ending in the beginning of an answer if wanted.

        Raises InvalidArgumentError where the template refuses or there is none.
        """
        if self._template is None:
            raise InvalidArgumentError("this model has no chat template; send text_input instead", field="messages")
        how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        turns = [message.model_dump(exclude_none=True) for message in messages]
        text = self._template.render(turns, **how)
        if self._guard is None:
            return Rendered(self.encode(text, add_special_tokens=add_special_tokens), text)
        marked = self._marked(self._guard, self._template, turns, text, how)
        if marked is None:
            return Rendered(self.encode(text, add_special_tokens=add_special_tokens), text)
        return Rendered(tuple(self._guard.encode(marked, add_special_tokens=add_special_tokens)), text)

    def _marked(
        self,
        guard: SpecialTokenGuard,
        template: ChatTemplate,
        turns: list[dict[str, Any]],
        text: str,
        how: Mapping[str, bool],
    ) -> str | None:
        """The rendered text with marks in what callers wrote; None where nothing in it could be a special token."""
        for only_special in (False, True):  # templates take tags such as <think> out of an assistant's text
            marked_turns = [_marked_turn(turn, guard, only_special) for turn in turns]
            if marked_turns == turns:
                return text if any(guard.lurks(text) for turn in turns for text in _texts(turn)) else None
            marked = template.render(marked_turns, **how)
            if guard.unmark(marked) in (text, template.render(turns, **how)):  # twice: it may tell the time
                return marked
        raise InvalidArgumentError(
            "the chat template reacts to a special token that is spelled out in them; remove it", field="messages"
        )

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
        used = set(self.encode(template.opening(), add_special_tokens=False)) | set(self._end_tokens)
        added = self.backend.get_added_tokens_decoder()
        said = {token for text in template.probe_texts for token in self.encode(text, add_special_tokens=False)}
        contents = [added[token_id].content for token_id in used - said if token_id in added]
        return [content for content in contents if TAG.fullmatch(content)]


def _marked_turn(turn: Mapping[str, Any], guard: SpecialTokenGuard, only_special: bool) -> dict[str, Any]:
    """With marks in its texts: in an assistant's in special tokens alone, since they were answers with their tags."""
    leaves_tags = only_special or turn["role"] == "assistant"
    marked = {**turn, "content": guard.mark(turn["content"], only_special=leaves_tags)}
    if "name" in turn:
        marked["name"] = guard.mark(turn["name"], only_special=only_special, ends=not only_special)
    return marked


def _texts(turn: Mapping[str, Any]) -> list[str]:
    return [text for name, text in turn.items() if name != "role"]


def _end_tokens(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, backend: Tokenizer
) -> dict[int, str]:
    ends = [tokenizer.eos_token]
    if template is not None:
        added = sorted((t.content for t in backend.get_added_tokens_decoder().values()), key=len, reverse=True)
        ends += [
            next((token for token in added if token.strip() and closing.startswith(token)), None)
            for closing in template.closings()
        ]
    ids = {token: backend.token_to_id(token) for token in ends if token}
    return {token_id: token for token, token_id in ids.items() if token_id is not None}
