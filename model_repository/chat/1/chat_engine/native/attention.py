"""Paged attention, registered with transformers' attention interface.

A step's tokens of all sequences stand one after the other in one row. Their keys and values are written to the paged
cache first, then each sequence attends to its own blocks: by the kernels of `tiled`, or by scaled dot-product attention
over copies of the blocks (`copied`).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from chat_engine.errors import UnsupportedModelError
from chat_engine.native.paged_cache import LayerShape

IMPLEMENTATION = "triton_chat_paged"

# Arguments that some models' attention needs and that are not done here; a model that passes one is refused at load.
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "attention_mask")


class AttentionBatch(Protocol):
    """One step, as the attention layers see it. Built once, used by every layer."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Writes keys and values into the cache, and gives `[rows, heads, value_dim]`.

        Args:
            layer: its number.
            q: `[rows, heads, key_dim]`; `k` and `v` alike with the KV heads. Rows beyond the step are padding.
            scale: of the scores.
            window: tokens, the query's own among them, that a query may look back on.
        """
        ...


class LayerProbe:
    """Takes the place of an `AttentionBatch` in one trial forward pass and notes what each layer asks for."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.widest_window: int | None = None

    def note(self, index: int, key: Tensor, value: Tensor, window: int | None, options: dict[str, Any]) -> None:
        """Raises UnsupportedModelError when the layer needs what paged attention here does not do."""
        for name in _UNSUPPORTED:
            if options.get(name) is not None:
                raise UnsupportedModelError(f"the model's attention uses {name!r}, which is not supported")
        if index in self.layers:
            raise UnsupportedModelError(f"the model's layer {index} attends twice, which is not supported")
        self.layers[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        if window is not None:
            self.widest_window = max(window, self.widest_window or 0)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paged: AttentionBatch | LayerProbe | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature of transformers' `AttentionInterface`.

    Args:
        query: `[1, heads, rows, key_dim]`; `key` and `value` alike with the KV heads.
        sliding_window: tokens, the query's own among them, that a query may look back on.

    Returns:
        `[1, rows, heads, value_dim]`.
    """
    assert paged is not None, "the model does not pass its keyword arguments on to attention"
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(paged, LayerProbe):
        if not getattr(module, "is_causal", True):
            raise UnsupportedModelError("the model's attention is not causal, which is not supported")
        paged.note(layer, key, value, sliding_window, {**options, "attention_mask": attention_mask})
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return paged.attend(layer, q, k, v, scale, sliding_window)[None], None


# No mask is registered under this name, so transformers makes none: one dense matrix over the whole row.
AttentionInterface.register(IMPLEMENTATION, paged_attention)
