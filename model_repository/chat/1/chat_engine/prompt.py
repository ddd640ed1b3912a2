"""Messages to token ids and back, by the model's own chat template and tokenizer, on the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, TypeAdapter
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidRequestError, UnsupportedModelError


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


MESSAGES = TypeAdapter(list[Message])


class PromptEncoder:
    """Prompts of one model. `backend` is its `tokenizers` object, never changed again, so that threads may share it.

    `tokenizer` is what transformers has made of the checkpoint, for what it knows of itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("the checkpoint has no fast tokenizer (tokenizer.json), which streaming needs")
        self.tokenizer = tokenizer
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def load(cls, config: EngineConfig) -> PromptEncoder:
        """Raises UnsupportedModelError, and OSError when there is no such checkpoint."""
        return cls(AutoTokenizer.from_pretrained(config.model, revision=config.revision, trust_remote_code=False))

    def render(self, messages: list[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt as text, ending in the beginning of an answer if wanted.

        Raises InvalidRequestError where the template refuses or there is none.
        """
        if not self.tokenizer.chat_template:
            raise InvalidRequestError("messages: this model has no chat template; send text_input instead")
        turns = [message.model_dump() for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise InvalidRequestError(f"messages: the model's chat template refuses them: {error}") from error
        assert isinstance(text, str)
        return text

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of a text; a rendered prompt already holds its special tokens.

        Of the ways to encode only those of a batch let other threads run meanwhile: for the longest prompts that is a
        second in which the engine would stand still.
        """
        return tuple(self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included; ids that the tokenizer has no text for give none."""
        return self.backend.decode(token_ids, skip_special_tokens=False)
