from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chat_engine.native import packing
from chat_engine.native.packing import PackedLinear, pack
from chat_engine.native.weights import can_pack

DTYPES = [torch.float32, *(dtype for dtype in (torch.bfloat16, torch.float16) if can_pack(dtype))]
TOLERANCE = {torch.float32: 1e-4}


class Layer(nn.Module):
    """Three layers that read one input, in an order of your choice, one that reads the sum, and that one again."""

    def __init__(self, biases: tuple[bool, bool, bool], order: tuple[str, ...] = ("a", "b", "c")) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, out, bias=bias) for out, bias in zip((8, 8, 8), biases, strict=True))
        self.d = nn.Linear(8, 8)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        total = sum((self.get_submodule(name)(x) for name in self.order), torch.zeros(()).to(x))
        return torch.as_tensor(self.d(self.d(total)))


@torch.inference_mode()
def packed(layer: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """What the layer computes by itself, and the layer, packed."""
    layer.to(dtype)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}

    def plain(x: Tensor) -> Tensor:
        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

        total = linear("a", x) + linear("b", x) + linear("c", x)
        return linear("d", linear("d", total))

    pack(layer, lambda: layer(torch.zeros(1, 2, 16, dtype=dtype)))
    return plain, layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 33, 300])
@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)], ids=str)
def test_it_computes_what_plain_layers_do(biases: tuple[bool, bool, bool], rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    plain, layer = packed(Layer(biases), dtype)
    x = torch.randn(1, rows, 16).to(dtype)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.allclose(layer(x).float(), plain(x).float(), atol=TOLERANCE.get(dtype, 0.1))


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b")])
def test_layers_that_read_the_same_input_share_a_product(order: tuple[str, ...]) -> None:
    _, layer = packed(Layer((False, False, False), order))
    assert len({id(product(layer, name)) for name in "abc"}) == 1
    assert product(layer, "d") is not product(layer, "a")


def test_with_and_without_a_bias_do_not_go_together() -> None:
    _, layer = packed(Layer((True, True, False)))
    assert product(layer, "a") is product(layer, "b") is not product(layer, "c")


@torch.inference_mode()
def test_what_is_asked_in_another_order_or_again_is_right_all_the_same() -> None:
    plain, layer = packed(Layer((True, True, True)))
    x, y = torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    a, b = layer.get_submodule("a"), layer.get_submodule("b")
    first = a(x), a(y), b(x), b(y), a(y)  # each forgets what the other had left to ask for
    assert torch.equal(first[1], first[4])
    assert torch.allclose(first[0] + first[2] + layer.get_submodule("c")(x), total(layer, x), atol=1e-5)
    assert torch.allclose(layer(x), plain(x), atol=1e-4)


@torch.inference_mode()
def test_nothing_of_a_step_stays_behind_it() -> None:
    _, layer = packed(Layer((True, True, True)))
    x = torch.randn(1, 3, 16)
    left = weakref.ref(x)
    layer(x)
    del x
    assert left() is None


def test_the_plain_weights_are_let_go_and_can_still_be_read() -> None:
    layer = Layer((True, True, True))
    weights = {name: layer.get_submodule(name).weight.detach().clone() for name in "abcd"}
    left = [weakref.ref(layer.get_submodule(name).weight) for name in "abcd"]
    packed(layer)
    assert not any(weight() is not None for weight in left)
    for name, weight in weights.items():
        assert torch.equal(layer.get_submodule(name).weight, weight)


def test_a_head_that_shares_its_weights_leaves_the_embedding_as_it_is() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(32, 16)
            self.head = nn.Linear(16, 32, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            return torch.as_tensor(self.head(self.embedding(ids)))

    model, ids = Tied(), torch.tensor([[3, 1, 4]])
    with torch.inference_mode():
        before = model(ids)
        pack(model, lambda: model(ids))
        assert isinstance(model.head, PackedLinear)
        assert torch.allclose(model(ids), before, atol=1e-4)


def test_layers_of_other_classes_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    model = nn.Sequential(Other(4, 4), nn.Linear(4, 4))
    pack(model, lambda: model(torch.zeros(1, 2, 4)))
    assert type(model[0]) is Other
    assert type(model[1]) is PackedLinear


def test_small_layers_are_left_alone_but_their_product_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_WORTH_WEIGHTS", 3 * 16 * 8)
    _, layer = packed(Layer((False, False, False)))
    assert all(type(layer.get_submodule(name)) is PackedLinear for name in "abc")
    assert type(layer.get_submodule("d")) is nn.Linear


def test_types_that_the_processor_converts_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not can_pack(torch.bfloat16)
    assert not can_pack(torch.float64)


def product(layer: nn.Module, name: str) -> packing._Product:
    module = layer.get_submodule(name)
    assert isinstance(module, PackedLinear)
    return module._product


def total(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.as_tensor(sum(layer.get_submodule(name)(x) for name in "abc"))
