"""What each model of a server can be asked, told by its tensors, because names are the operator's choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from triton_chat import embeddings
from triton_chat.types import AdapterInfo, ModelKind

READY = "READY"
_CHAT = {"text_output", "finish_reason", "num_cached_tokens"}
_TOKENIZER = {"token_ids", "max_model_len"}
"""Outputs by which they are known. Not all that they have: during an update older and newer ones run side by side."""


def kind_of(config: Any) -> ModelKind:
    """The kind of a model with this `ModelConfig` (protobuf)."""
    outputs = _names(config.output)
    if outputs >= _CHAT:
        return "chat" if config.model_transaction_policy.decoupled else "chat_unary"
    if outputs >= _TOKENIZER:
        return "tokenizer"
    return "embeddings" if outputs >= _names(embeddings.OUTPUTS) else "other"


class Kinds:
    """Kinds and adapters by name and version.

    A model is asked once for as long as it is loaded, since only loading changes it.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], ModelKind] = {}
        self._current: set[tuple[str, str]] = set()
        self._adapters: dict[tuple[str, str], tuple[AdapterInfo, ...]] = {}
        self._told: set[tuple[str, str]] = set()

    def is_unknown(self, entry: Any) -> bool:
        """Whether to ask for the config of this entry of the repository index."""
        key = (entry.name, entry.version)
        if entry.state != READY:
            self._current.discard(key)
            self._told.discard(key)
        return entry.state == READY and key not in self._current

    def learn(self, entry: Any, config: Any) -> None:
        """Keeps what its config says."""
        key = (entry.name, entry.version)
        self._known[key] = kind_of(config)
        self._current.add(key)

    def lacks_adapters(self, entry: Any) -> bool:
        """Whether to ask for the adapters of this entry."""
        key = (entry.name, entry.version)
        return key in self._current and self._known[key] == "chat" and key not in self._told

    def learn_adapters(self, entry: Any, found: Mapping[str, tuple[AdapterInfo, ...]]) -> None:
        """Keeps those of this entry, of what is told by the names of models."""
        key = (entry.name, entry.version)
        self._adapters[key] = found.get(entry.name, ())
        self._told.add(key)

    def adapters(self, entry: Any) -> tuple[AdapterInfo, ...]:
        return self._adapters.get((entry.name, entry.version), ())

    def __getitem__(self, entry: Any) -> ModelKind:
        return self._known.get((entry.name, entry.version), "other")


def _names(tensors: Iterable[Any]) -> set[str]:
    return {tensor.name for tensor in tensors}
