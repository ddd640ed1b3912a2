"""The tokenizer of a checkpoint, true to its `tokenizer.json`."""

from __future__ import annotations

import logging

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from chat_engine.errors import UnsupportedModelError

log = logging.getLogger(__name__)

# Texts on which a tokenizer that was built anew may differ from the one in the file: scripts, blanks, numbers, code.
PROBES = (
    "Hello, world!  It's 2024-05-17; don't panic.",
    "    indented\n\n\ttabs\r\nand   many    blanks \n",
    "def f(x):\n    return (x) + (x)**2  # 1234567890\n\n\nclass A:\n        pass\n",
    "你好，世界！今天天气怎么样？",
    "Привет, мир. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया. こんにちは 안녕하세요",
    "naïve café ﬁne ½ ① Ａ é e\u0301 \u00a0\u200b 🎉👩‍👩‍👧",
    " a", "a ", "(hello) (world)\n\n", "<b>x</b> {\"k\": [1, 2.5e-3]}", "ALL CAPS and camelCase snake_case",
)  # fmt: skip


def load_tokenizer(model: str, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, Tokenizer]:
    """What transformers has made of it, for what it knows of itself, and the fast tokenizer, which alone makes tokens.

    The fast one neither cuts nor pads.

    Raises UnsupportedModelError where there is none or its files do not belong together, OSError without a checkpoint.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    backend = _faithful(fast(tokenizer), model, revision)
    return tokenizer, backend


def fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Its fast tokenizer, which neither cuts nor pads from now on. Raises UnsupportedModelError where there is none."""
    if not tokenizer.is_fast:
        raise UnsupportedModelError("the checkpoint has no fast tokenizer (tokenizer.json)")
    return _without_limits(tokenizer.backend_tokenizer)


def _faithful(built: Tokenizer, model: str, revision: str | None) -> Tokenizer:
    """The tokenizer of `tokenizer.json`, where transformers has built another one from the class that is named.

    Raises UnsupportedModelError when tokens that transformers has added would have other ids in it.
    """
    path = cached_file(model, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return built
    own = _without_limits(Tokenizer.from_file(path))
    if all(_plain(own, text) == _plain(built, text) for text in PROBES):
        return built
    _add_tokens(own, built)
    if built.post_processor is not None:
        own.post_processor = built.post_processor
    log.warning("transformers' tokenizer does not split texts as tokenizer.json does; tokenizer.json is used")
    return own


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _add_tokens(own: Tokenizer, built: Tokenizer) -> None:
    for token_id, token in sorted(built.get_added_tokens_decoder().items()):
        own.add_special_tokens([token]) if token.special else own.add_tokens([token])
        if own.token_to_id(token.content) != token_id:
            raise UnsupportedModelError(
                f"tokenizer_config.json: the token {token.content!r} has the id {token_id} there and "
                f"{own.token_to_id(token.content)} by tokenizer.json; use tokenizer files that belong together"
            )


def _plain(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
