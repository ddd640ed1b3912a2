"""Messages to token ids, by the model's own chat template, on the server."""

from __future__ import annotations

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
    """Prompts of one model. `backend` is its `tokenizers` object, never changed again, so that threads may share it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("the checkpoint has no fast tokenizer (tokenizer.json), which streaming needs")
        self._tokenizer = tokenizer
        self.backend: Tokenizer = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()

    @classmethod
    def load(cls, config: EngineConfig) -> PromptEncoder:
        """Raises UnsupportedModelError, and OSError when there is no such checkpoint."""
        return cls(AutoTokenizer.from_pretrained(config.model, revision=config.revision, trust_remote_code=False))

    def render(self, messages: list[Message]) -> str:
        """The prompt as text. Raises InvalidRequestError where the template refuses or there is none."""
        if not self._tokenizer.chat_template:
            raise InvalidRequestError("messages: this model has no chat template; send text_input instead")
        turns = [message.model_dump() for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidRequestError(f"messages: the model's chat template refuses them: {error}") from error
        assert isinstance(text, str)
        return text

    def encode(self, text: str, *, is_rendered: bool) -> tuple[int, ...]:
        """Token ids of a prompt; a rendered one already holds its special tokens."""
        return tuple(self.backend.encode(text, add_special_tokens=not is_rendered).ids)
