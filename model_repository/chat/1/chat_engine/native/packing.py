"""Linear layers of a model that read the same input, in one product, with weights in the form of the device.

Their weights take the place of the plain ones, so memory does not double; only a head that shares its weights with the
embedding, which reads them row by row, gets a copy where the form is another.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from chat_engine.native.weights import PackedWeight, PlainWeight, Weight

# Below so many weights in a product, calling oneDNN's costs more than it saves.
_WORTH_WEIGHTS = 1 << 18


@torch.inference_mode()
def pack(model: nn.Module, forward: Callable[[], object], form: Callable[[Tensor], Weight] | None = None) -> None:
    """Replaces the linear layers of a model, in place: on a CPU by packed ones, on a GPU where several are one product.

    Args:
        model: transformers'; layers of other classes than `nn.Linear`, and small ones, are left as they are.
        forward: runs it once, by which it is seen which layers read the same input.
        form: what becomes of the weights of all linear layers, small ones too; None: what is fastest.
    """
    for siblings in _siblings(model, forward):
        linears: list[nn.Linear] = [model.get_submodule(name) for name in siblings]  # type: ignore[misc]
        if form is None and sum(linear.weight.numel() for linear in linears) < _WORTH_WEIGHTS:
            continue
        on_cpu = linears[0].weight.device.type == "cpu"
        if not on_cpu and len(linears) == 1:
            continue
        product = _Product(linears, form or (PackedWeight if on_cpu else PlainWeight))
        for name, part in zip(siblings, product.parts, strict=True):
            model.set_submodule(name, PackedLinear(product, part))
        del linears
        if not on_cpu:
            torch.cuda.empty_cache()  # else the plain weights of all layers would stay beside the new ones


class PackedLinear(nn.Module):
    """Takes the place of an `nn.Linear`: its part of a product that it may share with its siblings."""

    def __init__(self, product: _Product, part: slice) -> None:
        super().__init__()
        self._product = product
        self._part = part
        self.in_features = product.in_features
        self.out_features = part.stop - part.start

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return self._product(x, self._part)

    @property
    def weight(self) -> Tensor:
        """A copy of the plain weights, `[out_features, in_features]`, for models that look at them too."""
        return self._product.weight.plain()[self._part]

    @property
    def bias(self) -> Tensor | None:
        """`[out_features]`."""
        return None if self._product.bias is None else self._product.bias[self._part]


class _Product:
    """The matrix product of layers that read the same input, computed when the first of them is asked."""

    def __init__(self, linears: list[nn.Linear], form: Callable[[Tensor], Weight]) -> None:
        ends = list(itertools.accumulate(linear.out_features for linear in linears))
        self.parts = [slice(end - linear.out_features, end) for end, linear in zip(ends, linears, strict=True)]
        self.in_features = linears[0].in_features
        weights: list[Tensor] = [linear.weight for linear in linears]
        biases: list[Tensor | None] = [linear.bias for linear in linears]
        given = [bias for bias in biases if bias is not None]
        self.bias = torch.cat(given) if given else None
        self.weight = form(torch.cat(weights))
        self._input: Tensor | None = None
        self._output = weights[0].new_empty(0)
        self._left: set[int] = set()

    def __call__(self, x: Tensor, part: slice) -> Tensor:
        if x is not self._input or part.start not in self._left:
            self._input, self._left = x, {other.start for other in self.parts}
            self._output = self.weight.product(x, self.bias)
        result = self._output[..., part]
        self._left.remove(part.start)
        if not self._left:  # nothing of a step stays behind it
            self._input, self._output = None, x.new_empty(0)
        return result


def _siblings(model: nn.Module, forward: Callable[[], object]) -> list[list[str]]:
    """Names of the linear layers, those whose products are to be one together; the layers themselves are let go."""
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    calls: list[tuple[str, Tensor]] = []  # the inputs are kept, so that no two have one identity
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, args[0])))
        for name, linear in linears.items()
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()

    def kind(call: tuple[str, Tensor]) -> tuple[object, ...]:
        name, x = call
        return id(x), name.rpartition(".")[0], linears[name].bias is None, linears[name].weight.dtype

    times = Counter(name for name, _ in calls)
    once = [call for call in calls if times[call[0]] == 1]
    groups = [[name for name, _ in group] for _, group in itertools.groupby(once, kind)]
    return groups + [[name] for name in linears if times[name] != 1]
