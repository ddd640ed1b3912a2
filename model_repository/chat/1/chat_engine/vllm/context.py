"""How long a context vLLM gets, found out without vLLM, so that the model `tokenizer` can say the same number.

It is that of the native engine, or less, where vLLM would take less by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chat_engine.config import EngineConfig
from chat_engine.errors import UnsupportedModelError
from chat_engine.native.checkpoint import read_config
from chat_engine.native.context import context_range


@dataclass(frozen=True)
class VllmLimits:
    """What a request to a chat model is checked against."""

    max_model_len: int
    vocab_size: int


def vllm_limits(config: EngineConfig) -> VllmLimits:
    """The setting `max_model_len`, else the context that the checkpoint is made for.

    Raises UnsupportedModelError where its files do not say, or OSError for a missing checkpoint.
    """
    text: Any = read_config(config.model, config.revision).parsed.get_text_config()
    return VllmLimits(config.max_model_len or _context(text), int(text.vocab_size))


def _context(text: Any) -> int:
    trained = getattr(text, "max_position_embeddings", None)
    if not isinstance(trained, int):
        raise UnsupportedModelError("config.json: no max_position_embeddings is given; set max_model_len")
    usual = context_range(text).usual
    rope = getattr(text, "rope_parameters", None) or {}
    # But for this one, vLLM takes what is written for the whole length.
    return usual if rope.get("rope_type") == "linear" else min(usual, trained)
