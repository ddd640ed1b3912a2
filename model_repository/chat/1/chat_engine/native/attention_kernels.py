"""What attention in tiles needs of the kernels of a kind of device."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from chat_engine.native.step_inputs import StepInputs


class LayerAttention(Protocol):
    """Attention of one step, layer by layer."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Writes `k` and `v` into the cache of a layer, and gives `[rows, heads, value_dim]`.

        Args:
            q: `[rows, heads, key_dim]`; `k` and `v` alike with the KV heads. The numbers of a head are neighbours.
            keys: of the layer, `[blocks, block_size, kv_heads, key_dim]`; `values` alike.
            scale: of the scores.
            window: tokens, the query's own among them, that a query may look back on.
        """
        ...


class Kernels(Protocol):
    """Those of a kind of device."""

    def wide_rows(self, group: int) -> int:
        """Query rows of a tile of many, where so many heads share a KV head."""
        ...

    def attention(self, step: StepInputs) -> LayerAttention:
        """Of a step; another may be written into its place afterwards."""
        ...
