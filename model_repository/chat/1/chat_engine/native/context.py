"""How long a context a checkpoint's positions are made for, and rotary frequencies that do not change while it runs.

Sources: transformers' `modeling_rope_utils`; YaRN (arXiv:2309.00071), LongRoPE (arXiv:2402.13753), dynamic NTK scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

# Rope types whose frequencies, in transformers, change for the whole batch when one sequence grows long.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True)
class ContextRange:
    """Tokens of one sequence, prompt and answer together.

    Attributes:
        usual: the context unless the settings say otherwise.
        most: how far `max_model_len` may go; beyond `usual`, all sequences get other frequencies.
    """

    usual: int
    most: int

    def capped(self, limit: int) -> ContextRange:
        """No more than `limit`."""
        return ContextRange(min(self.usual, limit), min(self.most, limit))


def context_range(text: PretrainedConfig) -> ContextRange:
    """What the rotary frequencies are made for, or the length of a table of positions."""
    trained = int(text.max_position_embeddings)
    rope = getattr(text, "rope_parameters", None) or {}
    if "rope_type" not in rope:  # none, or one for each kind of layer, with lengths that the config sums up
        nested = [entry for entry in rope.values() if isinstance(entry, dict)]
        scaled = [entry for entry in nested if entry.get("rope_type") in _LENGTH_DEPENDENT]
        originals = [int(entry.get("original_max_position_embeddings") or trained) for entry in scaled]
        return ContextRange(trained, trained).capped(min(originals, default=trained))
    return _scaled(trained, rope)


def _scaled(trained: int, rope: dict[str, Any]) -> ContextRange:
    factor = float(rope.get("factor") or 1)
    original = int(rope.get("original_max_position_embeddings") or trained)
    stretched = int(original * factor)
    match rope["rope_type"]:
        case "linear" | "yarn":
            length = max(trained, stretched)
        case "llama3":  # published with the final length beside the original one
            length = trained if trained > original else stretched
        case "dynamic":
            return ContextRange(min(original, trained), max(trained, stretched))
        case "longrope":  # the short factors up to the original length, the long ones beyond
            return ContextRange(min(original, trained), trained)
        case _:
            length = trained
    return ContextRange(length, length)


def fix_frequencies(model: nn.Module, max_model_len: int) -> None:
    """Gives every sequence the frequencies that transformers uses for one of `max_model_len` tokens.

    For contexts beyond `ContextRange.usual` only. transformers chooses them anew for each forward pass, by the longest
    sequence in it, but keys in the cache keep the rotation they were written with, and nobody's answer may depend on
    who else is in the batch.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, str) and kind in _LENGTH_DEPENDENT:
            old = cast("Tensor", module.inv_freq)
            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](cast("Any", module.config), old.device, max_model_len)
            module.register_buffer("inv_freq", frequencies.to(old), persistent=False)
            vars(module).update(attention_scaling=scaling, rope_type="default")  # no forward pass changes them now
