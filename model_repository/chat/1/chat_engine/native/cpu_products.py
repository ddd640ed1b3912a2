"""Products with the weights of linear layers on a CPU: the way to `cpu/product.cpp`."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from chat_engine.native.cpu_calls import call, function_of
from chat_engine.native.weights import in_8_bits

_FLOATS, _HALVED, _BYTES = range(3)
_HALF_OF_A_PANEL = 2


class _Told(ctypes.Structure):
    """Mirror of `Product` in `cpu/product.cpp`."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "bias", "scales", "out")),
        *((name, c_int64) for name in ("rows", "x_row", "out_row")),
        *((name, c_int32) for name in ("inputs", "outputs", "form", "bfloat16", "threads")),
    )


class CpuProducts:
    """The products of a library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.product = function_of(library, "product")
        self.panel = int(library.chat_engine_panel())

    def weight(self, weight: Tensor) -> PanelWeight:
        """Without rounding: in 16 bits where bfloat16 can hold float32 weights, as it can those of most checkpoints."""
        halves = weight.bfloat16()
        if weight.dtype == torch.bfloat16 or torch.equal(halves.to(weight.dtype), weight):
            return PanelWeight(self, weight, halves, _HALVED)
        return PanelWeight(self, weight, weight.float(), _FLOATS)

    def int8(self, weight: Tensor) -> PanelWeight:
        """In 8 bits with one scale for each output (symmetric, round to nearest)."""
        rounded, scales = in_8_bits(weight)
        return PanelWeight(self, weight, rounded, _BYTES, scales)


class PanelWeight:
    """See `Weight`: in panels of some outputs, input by input, and multiplied as float32.

    Args:
        products: by which.
        plain: `[outputs, inputs]`, float32 or bfloat16, the type of the rows it will be multiplied with.
        kept: the same in the type in which it is kept.
        form: how panels lie.
        scales: `[outputs]`, that results are multiplied with.
    """

    def __init__(
        self, products: CpuProducts, plain: Tensor, kept: Tensor, form: int, scales: Tensor | None = None
    ) -> None:
        self._outputs, self._inputs = plain.shape
        self._dtype = plain.dtype
        self._function = products.product
        self._scales = scales
        self._odd = form == _BYTES and self._inputs % 2
        self._panels = _in_panels(F.pad(kept, (0, self._odd)), products.panel, form)
        self._form = form
        self._told = told = _Told()
        told.inputs, told.outputs, told.form = self._inputs + self._odd, self._outputs, form
        told.bfloat16 = self._dtype == torch.bfloat16
        told.weight = self._panels.data_ptr()
        told.scales = None if scales is None else scales.data_ptr()

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `Weight`; an output does not depend on how many rows there are."""
        if self._odd:
            x = F.pad(x, (0, 1))
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        out = x.new_empty(*x.shape[:-1], self._outputs)
        told = self._told
        told.rows, told.x_row, told.out_row = len(rows), rows.stride(0), self._outputs
        told.threads = torch.get_num_threads()
        told.bias = None  # of another call
        call(self._function, told, x=rows, out=out, **({} if bias is None else {"bias": bias}))
        return out

    def plain(self) -> Tensor:
        """See `Weight`; in 8 bits to the nearest of 255 values for each output."""
        kept = _out_of_panels(self._panels, self._form)[: self._outputs, : self._inputs]
        if self._scales is not None:
            kept = kept * self._scales[:, None]
        return kept.to(self._dtype)


def _in_panels(weight: Tensor, panel: int, form: int) -> Tensor:
    """In the order in which a vector at a time is read.

    As floats `[panels, inputs, 2, width]`; in 16 bits `[panels, inputs, width, 2]`; in 8 `[panels, pairs of inputs,
    width, 2, 2]`.
    """
    outputs, inputs = weight.shape
    weight = F.pad(weight, (0, 0, 0, -outputs % panel))
    parts = weight.view(-1, 2, panel // _HALF_OF_A_PANEL, inputs)
    if form == _FLOATS:
        return parts.permute(0, 3, 1, 2).contiguous()
    if form == _HALVED:
        return parts.permute(0, 3, 2, 1).contiguous()
    return parts.view(*parts.shape[:3], -1, 2).permute(0, 3, 2, 4, 1).contiguous()


def _out_of_panels(panels: Tensor, form: int) -> Tensor:
    """`[outputs, inputs]` with what was added to either."""
    if form == _FLOATS:
        parts = panels.permute(0, 2, 3, 1)
    elif form == _HALVED:
        parts = panels.permute(0, 3, 2, 1)
    else:
        parts = panels.permute(0, 4, 2, 1, 3).flatten(3)
    return parts.flatten(0, 2)
