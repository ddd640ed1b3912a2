"""Where keys and values lie: the tensors of the paged cache, and the part of them that a sequence has in a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """Heads and their sizes of one attention layer."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Span:
    """Where one sequence's tokens of this step stand.

    Attributes:
        start: its first row among the step's tokens.
        count: its rows.
        length: its tokens in the cache once these are written.
        blocks: its block numbers, enough for `length`.
    """

    start: int
    count: int
    length: int
    blocks: list[int]


class PagedCache:
    """Keys and values of all layers: per layer two tensors `[blocks, block_size, kv_heads, dim]`."""

    def __init__(
        self,
        layers: list[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        use_kernels: bool = False,
    ) -> None:
        def tensor(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.block_size = block_size
        self.use_kernels = use_kernels
        alike = all(layer.key_dim == layer.value_dim for layer in layers)
        self.can_share = use_kernels or (device.type == "cpu" and alike)
        self.keys = [tensor(layer.kv_heads, layer.key_dim) for layer in layers]
        self.values = [tensor(layer.kv_heads, layer.value_dim) for layer in layers]
        self._gathered = [torch.empty(0, dtype=dtype, device=device) for _ in range(2)]

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and values in `blocks` of one layer, `[blocks, block_size, heads, dim]`.

        Valid until the next call: the memory is used again, because fresh pages cost more than the copy itself.
        """
        copies = []
        for number, source in enumerate((self.keys[layer], self.values[layer])):
            needed = len(blocks) * source[0].numel()
            if self._gathered[number].numel() < needed:
                self._gathered[number] = source.new_empty(needed)
            out = self._gathered[number][:needed].view(len(blocks), *source.shape[1:])
            copies.append(torch.index_select(source, 0, blocks, out=out))
        return copies[0], copies[1]

    @staticmethod
    def bytes_per_token(layers: list[LayerShape], dtype: torch.dtype) -> int:
        """Bytes that one token takes in all layers."""
        return sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers) * dtype.itemsize
