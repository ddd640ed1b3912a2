"""Tokens for callers who want to see or count them: what a chat model makes of a text, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from chat_engine.checks import check_flag, decode, show, unknown
from chat_engine.config import EngineConfig, load_config
from chat_engine.errors import UnknownModelError
from chat_engine.model_loader import context_limits
from chat_engine.parse_prompt import PromptParser
from chat_engine.prompt import PromptEncoder

OPTIONS = ("add_generation_prompt", "add_special_tokens")
DEFAULT_MODEL = "chat"
_CODE = Path("1") / "chat_engine"
_KEPT = 8  # of a large vocabulary, each takes about 100 MB


@dataclass(frozen=True)
class TokenizerRequest:
    """A request as it came: the contract of the `tokenizer`'s `config.pbtxt`, undecoded; None is not given."""

    model: bytes | None = None
    messages: bytes | None = None
    text_input: bytes | None = None
    token_ids: bytes | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Tokens:
    """A text and its token ids; `max_model_len` is the context of the chat model, in tokens."""

    ids: tuple[int, ...]
    text: str
    max_model_len: int


class ChatTokenizer:
    """The tokenizer, the chat template and the limits of one chat model."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises UnsupportedModelError, or OSError for a missing checkpoint."""
        limits = context_limits(config)
        encoder = PromptEncoder.load(config)
        encoder.check_vocabulary(limits.vocab_size)
        self._prompts = PromptParser(encoder, config, limits.vocab_size, "token_ids")
        self._max_model_len = limits.max_model_len

    def tokens(self, request: TokenizerRequest) -> Tokens:
        """Raises InvalidRequestError."""
        parameters = request.parameters or {}
        for name in parameters.keys() - set(OPTIONS):
            raise unknown(name, parameters[name], OPTIONS)
        options = {name: check_flag(name, parameters.get(name)) for name in OPTIONS}
        prompt = self._prompts.parse(request.messages, request.text_input, request.token_ids, **options)
        return Tokens(prompt.ids, self._prompts.text_of(prompt), self._max_model_len)


class Tokenizers:
    """The tokenizers of a repository's chat models, loaded when first asked for; those used last are kept."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._load = lru_cache(_KEPT)(self._loaded)

    def find(self, raw_name: bytes | None) -> ChatTokenizer:
        """The tokenizer of the chat model with this name.

        Raises UnknownModelError; ConfigError or OSError where the settings or the checkpoint of a known one are wrong.
        """
        name = DEFAULT_MODEL if raw_name is None else decode("model", raw_name)
        known = self.models()
        if name not in known:
            raise UnknownModelError(
                f"model: no chat model has the name {show(name)}; there are {', '.join(known) or 'none'}"
            )
        return self._load(name)

    def models(self) -> list[str]:
        """Names of the repository's chat models: of those folders that hold the engine."""
        return sorted(code.parents[1].name for code in self._repository.glob(f"*/{_CODE}"))

    def _loaded(self, name: str) -> ChatTokenizer:
        return ChatTokenizer(load_config(name, self._repository / name / _CODE.parent, {}))
