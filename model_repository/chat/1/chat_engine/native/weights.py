"""The weights of a linear layer in the form that its device multiplies fastest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# The packed form depends on how many rows there will be; this one serves a single stream and large batches alike.
_ROWS = 32
# With more rows, multiplying takes longer than making plain weights first.
_FEW_ROWS = 32
_KERNEL_INPUTS = 32


class Weight(Protocol):
    """A matrix `[out_features, in_features]`."""

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        ...

    def plain(self) -> Tensor:
        """As it was, `[out_features, in_features]`; it may be a copy."""
        ...


class PlainWeight:
    """Row by row, as torch keeps it: on a GPU."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weight`."""
        return F.linear(x, self._weight, bias)

    def plain(self) -> Tensor:
        """See `Weight`."""
        return self._weight


class PackedWeight:
    """Arranged for oneDNN's kernels, which saves much of the time of the few rows of a decode step on a CPU."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)  # noqa: SLF001

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weight`."""
        return torch.as_tensor(torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], ""))  # noqa: SLF001

    def plain(self) -> Tensor:
        """See `Weight`."""
        return torch.as_tensor(self._packed.to_dense())


class Int8Weight:
    """In 8 bits with one scale for each output (symmetric, round to nearest), which halves what a decode step reads.

    Activations are not rounded, except to bfloat16 for the few rows of a decode step, by torch's kernel for CPUs.
    """

    def __init__(self, weight: Tensor) -> None:
        rounded, self._scales = in_8_bits(weight)
        self._inputs = weight.shape[1]
        # The kernel reads beyond the end of rows that are no multiple of 16 long.
        self._padding = -self._inputs % _KERNEL_INPUTS
        self._whole = F.pad(rounded, (0, self._padding))
        self._ones = torch.ones(len(weight), dtype=torch.bfloat16)
        self._dtype = weight.dtype

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weight`."""
        rows = x.flatten(0, -2)
        if len(rows) > _FEW_ROWS:
            return F.linear(x, self.plain(), bias)
        # The scales are applied afterwards: in bfloat16, as the kernel takes them, they would be wrong by up to 0.4%.
        rows = F.pad(rows.bfloat16(), (0, self._padding))
        made = torch._weight_int8pack_mm(rows, self._whole, self._ones).float() * self._scales  # noqa: SLF001
        made = made if bias is None else made + bias.float()
        return made.to(x.dtype).view(*x.shape[:-1], -1)

    def plain(self) -> Tensor:
        """See `Weight`; to the nearest of 255 values for each output."""
        return (self._whole[:, : self._inputs] * self._scales[:, None]).to(self._dtype)


def in_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 `[outputs, inputs]`, and what each output is to be multiplied with, float32 `[outputs]`."""
    largest = weight.abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
    scales = largest / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this type here, other than by converting each weight."""
    natively: dict[torch.dtype, Callable[[], bool]] = {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,  # noqa: SLF001
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,  # noqa: SLF001
    }
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and dtype in natively and natively[dtype]()
