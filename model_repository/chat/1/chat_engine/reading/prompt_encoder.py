"""Messages to token ids and back, by the model's own chat template and tokenizer, on the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError, UnsupportedModelError
from chat_engine.reading.chat_template import ChatTemplate, load_template
from chat_engine.reading.special_tokens import TAG, SpecialTokenGuard
from chat_engine.text.detokenizer import echo_text, text_of

log = logging.getLogger(__name__)

# Texts on which a tokenizer that was built anew may differ from the one in the file: scripts, blanks, numbers, code.
_PROBES = (
    "Hello, world!  It's 2024-05-17; don't panic.",
    "    indented\n\n\ttabs\r\nand   many    blanks \n",
    "def f(x):\n    return (x) + (x)**2  # 1234567890\n\n\nclass A:\n        pass\n",
    "你好，世界！今天天气怎么样？",
    "Привет, мир. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया. こんにちは 안녕하세요",
    "naïve café ﬁne ½ ① Ａ é e\u0301 \u00a0\u200b 🎉👩‍👩‍👧",
    " a", "a ", "(hello) (world)\n\n", "<b>x</b> {\"k\": [1, 2.5e-3]}", "ALL CAPS and camelCase snake_case",
)  # fmt: skip


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
        if not tokenizer.is_fast:
            raise UnsupportedModelError("the checkpoint has no fast tokenizer (tokenizer.json), which streaming needs")
        self.tokenizer = tokenizer
        self.backend: Tokenizer = backend or tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = False  # some settings would take those of the template for text
        self._template = load_template(tokenizer, template)
        self._end_tokens = _end_tokens(tokenizer, self._template, self.backend)
        own = [] if self._template is None else self._own_tokens(self._template)
        self._guard = SpecialTokenGuard(self.backend, own) if split_special_tokens else None

    @classmethod
    def load(cls, config: EngineConfig) -> PromptEncoder:
        """Raises ConfigError or UnsupportedModelError, and OSError when there is no such checkpoint."""
        tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision, trust_remote_code=False)
        return cls(
            tokenizer,
            config.chat_template,
            split_special_tokens=config.split_special_tokens,
            backend=_faithful(tokenizer, config) if tokenizer.is_fast else None,
        )

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
                    f"only the tokens 0 to {vocab_size - 1}; take the tokenizer files that belong to these weights"
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
            "the chat template acts on a special token that is written out in them; remove it", field="messages"
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


def _faithful(tokenizer: PreTrainedTokenizerBase, config: EngineConfig) -> Tokenizer:
    """The tokenizer of `tokenizer.json`, where transformers has built another one from the class that is named.

    Raises UnsupportedModelError when tokens that transformers has added would have other ids in it.
    """
    built: Tokenizer = tokenizer.backend_tokenizer
    path = cached_file(
        config.model, "tokenizer.json", revision=config.revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return built
    own = Tokenizer.from_file(path)
    if all(_plain(own, text) == _plain(built, text) for text in _PROBES):
        return built
    _add_tokens(own, built)
    if built.post_processor is not None:
        own.post_processor = built.post_processor
    log.warning(
        "transformers' %s does not split texts as tokenizer.json does; tokenizer.json is used", type(tokenizer).__name__
    )
    return own


def _add_tokens(own: Tokenizer, built: Tokenizer) -> None:
    for token_id, token in sorted(built.get_added_tokens_decoder().items()):
        own.add_special_tokens([token]) if token.special else own.add_tokens([token])
        if own.token_to_id(token.content) != token_id:
            raise UnsupportedModelError(
                f"tokenizer_config.json: the token {token.content!r} has the id {token_id} there and "
                f"{own.token_to_id(token.content)} by tokenizer.json; take tokenizer files that belong together"
            )


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
