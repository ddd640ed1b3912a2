"""Tokens for callers who want to see or count them: what a chat model makes of a text, without its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from chat_engine.config import EngineConfig, load_config
from chat_engine.errors import ConfigError, InvalidArgumentError, UnknownModelError
from chat_engine.native.model_loader import context_limits
from chat_engine.reading.chat_parameters import TEMPLATE_OPTIONS, read_chat_parameters
from chat_engine.reading.chat_template import ChatTemplate
from chat_engine.reading.checks import check_flag, decode, show, unknown
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.prompt_parser import PromptParser
from chat_engine.vllm.context import vllm_limits

PROMPT_OPTIONS = (*TEMPLATE_OPTIONS, "add_special_tokens")
RETURN_NAMES = "return_token_strs"
RETURN_INFO = "return_info"
RETURN_ADAPTERS = "return_adapters"
OPTIONS = (*PROMPT_OPTIONS, RETURN_NAMES, RETURN_INFO, RETURN_ADAPTERS)
REQUEST_ID = "id"
"""Triton's own field of a request; its HTTP endpoint `generate` hands it on as a parameter."""
DEFAULT_MODEL = "chat"
_VERSION = "1"
_KEPT = 8  # of a large vocabulary, each takes about 100 MB

_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SETTINGS: Final = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "do_lower_case", "legacy",
    "model_max_length", "padding_side", "split_special_tokens", "truncation_side", "use_default_system_prompt",
)  # fmt: skip
"""Of `tokenizer_config.json`, what is a plain value and no path."""
_LARGEST: Final = 2**53
"""Of a number in JSON; `model_max_length` is far larger where there is no limit."""


@dataclass(frozen=True)
class TokenizerRequest:
    """A request as it came: the contract of the `tokenizer`'s `config.pbtxt`, undecoded; None is not given."""

    model: bytes | None = None
    messages: bytes | None = None
    text_input: bytes | None = None
    token_ids: bytes | None = None
    chat_parameters: bytes | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Tokens:
    """A text and its token ids; `max_model_len` is the context of the chat model, in tokens.

    Attributes:
        token_strs: the tokenizer's own name of each token, empty for an id that has none; None where not asked for.
        info: what the checkpoint says, see `ChatTokenizer.info`, or the adapters of all models; None where not asked
            for.
    """

    ids: tuple[int, ...]
    text: str
    max_model_len: int
    token_strs: tuple[str, ...] | None = None
    info: Mapping[str, object] | None = None


class ChatTokenizer:
    """The tokenizer, the chat template and the limits of one chat model."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises UnsupportedModelError, or OSError for a missing checkpoint."""
        limits = context_limits(config) if config.engine == "native" else vllm_limits(config)
        encoder = PromptEncoder.load(config)
        encoder.check_vocabulary(limits.vocab_size)
        template = encoder.template
        self._prompts = PromptParser(encoder, config, limits.vocab_size, "token_ids")
        self._config = config
        self._max_model_len = limits.max_model_len
        self._backend = encoder.backend
        self.info = {
            "root": checkpoint_name(config.model),
            "config": tokenizer_config(encoder.tokenizer, template.source if template else None),
            "template": what_it_knows(template),
        }

    def tokens(self, request: TokenizerRequest) -> Tokens:
        """Raises InvalidArgumentError."""
        flags = _flags(request.parameters or {})
        flags.pop(RETURN_ADAPTERS, None)
        if flags.pop(RETURN_INFO, False):
            _check_alone(RETURN_INFO, request, flags)
            return Tokens((), "", self._max_model_len, info=self.info)
        names_wanted = flags.pop(RETURN_NAMES, False)
        options = {name: flags.pop(name, None) for name in TEMPLATE_OPTIONS}
        chat = read_chat_parameters(request.chat_parameters, self._config).with_options(options)
        prompt = self._prompts.parse(request.messages, request.text_input, request.token_ids, chat, **flags)
        names = tuple(self._backend.id_to_token(token) or "" for token in prompt.ids) if names_wanted else None
        return Tokens(prompt.ids, self._prompts.text_of(prompt), self._max_model_len, names)


def checkpoint_name(model: str) -> str:
    """Its id on a hub, also where that is a folder of a hub's cache; of another folder the last part, never a path."""
    if not Path(model).is_dir():
        return model
    folder = Path(os.path.abspath(model))  # noqa: PTH100 - `resolve` would follow links to names nobody gave
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def _origin(adapter: str) -> str:
    """As `checkpoint_name`, also of a folder that is not there."""
    name = checkpoint_name(adapter)
    return Path(name).name if name.startswith(("/", ".", "~")) else name


def tokenizer_config(tokenizer: PreTrainedTokenizerBase, template: str | None) -> dict[str, object]:
    """What callers may want of `tokenizer_config.json`, by its names; a special token is text, or None if missing.

    Of several chat templates it has the one that is used.
    """
    given: dict[str, Any] = tokenizer.init_kwargs
    settings = {name: given[name] for name in _SETTINGS if isinstance(given.get(name), bool | int | float | str)}
    if settings.get("model_max_length", 0) > _LARGEST:
        del settings["model_max_length"]
    special = {name: None if (token := getattr(tokenizer, name, None)) is None else str(token) for name in _SPECIAL}
    return {
        "tokenizer_class": type(tokenizer).__name__,
        **special,
        **settings,
        "chat_template": template,
        "added_tokens_decoder": {
            str(token_id): _added(token) for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        },
    }


def what_it_knows(template: ChatTemplate | None) -> dict[str, object]:
    """What a conversation may have beside messages: tools, calls of them, and `chat_template_kwargs` by name."""
    variants = () if template is None else template.variants
    return {
        "kwargs": sorted({name for variant in variants for name in variant.reads}),
        "tools": any(variant.shows_tools for variant in variants),
        "tool_calls": any(variant.shows_calls for variant in variants),
    }


def _added(token: AddedToken) -> dict[str, object]:
    return {
        "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized, "rstrip": token.rstrip,
        "single_word": token.single_word, "special": token.special,
    }  # fmt: skip


def _flags(parameters: Mapping[str, object]) -> dict[str, bool]:
    """The options that are given."""
    flags = {}
    for name, value in parameters.items():
        if name == REQUEST_ID:
            continue
        if name not in OPTIONS:
            raise unknown(name, value, OPTIONS)
        if (flag := check_flag(name, value)) is not None:
            flags[name] = flag
    return flags


def _check_alone(flag: str, request: TokenizerRequest, flags: Mapping[str, bool]) -> None:
    names = ("messages", "text_input", "token_ids", "chat_parameters")
    inputs = (name for name in names if getattr(request, name) is not None)
    if others := [*inputs, *flags]:
        raise InvalidArgumentError(
            f"cannot be combined with other inputs; leave out {' and '.join(others)}", field=flag
        )


class Tokenizers:
    """The tokenizers of a repository's chat models, loaded when first asked for; those used last are kept."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._load = lru_cache(_KEPT)(self._loaded)

    def tokens(self, request: TokenizerRequest) -> Tokens:
        """What a request asks for, of the model that it names.

        Raises InvalidArgumentError; ConfigError or OSError, see `find`.
        """
        flags = _flags(request.parameters or {})
        if not flags.pop(RETURN_ADAPTERS, False):
            return self.find(request.model).tokens(request)
        _check_alone(RETURN_ADAPTERS, request, flags)
        if request.model is not None:
            raise InvalidArgumentError("is for all models at once; leave out model", field=RETURN_ADAPTERS)
        return Tokens((), "", 0, info={"adapters": {name: self._adapters(name) for name in self.models()}})

    def find(self, raw_name: bytes | None) -> ChatTokenizer:
        """The tokenizer of the chat model with this name.

        Raises UnknownModelError; ConfigError or OSError where the settings or the checkpoint of a known one are wrong.
        """
        name = DEFAULT_MODEL if raw_name is None else decode("model", raw_name)
        known = self.models()
        if name not in known:
            raise UnknownModelError(
                f"no chat model has the name {show(name)}; there are {', '.join(known) or 'none'}", field="model"
            )
        return self._load(name)

    def models(self) -> list[str]:
        """Names of the repository's chat models: of those folders that hold the settings of an engine."""
        return sorted(path.parents[1].name for path in self._repository.glob(f"*/{_VERSION}/engine.json"))

    def _adapters(self, name: str) -> dict[str, str]:
        """The checkpoint of each by its name; none of a model whose settings are wrong, which does not serve."""
        try:
            return {adapter: _origin(place) for adapter, place in self._config(name).adapters.items()}
        except ConfigError:
            return {}

    def _loaded(self, name: str) -> ChatTokenizer:
        return ChatTokenizer(self._config(name))

    def _config(self, name: str) -> EngineConfig:
        return load_config(name, self._repository / name / _VERSION, {})
