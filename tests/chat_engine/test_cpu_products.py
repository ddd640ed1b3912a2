"""Products with packed weights on a CPU, for each set of instructions that this processor has."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chat_engine.native.cpu_products import CpuProducts, PanelWeight

SIZES = [(24, 40), (129, 100), (8, 16), (64, 96), (1, 1), (33, 7), (40, 600), (16, 257)]
ROWS = [1, 2, 3, 5, 6, 7, 12, 13, 25, 100, 250]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def products(cpu_library: ctypes.CDLL) -> CpuProducts:
    return CpuProducts(cpu_library)


def random(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def far(made: Tensor, right: Tensor) -> float:
    return float((made.double() - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_product(products: CpuProducts, size: tuple[int, int], rows: int) -> None:
    x, bias = random(1, rows, size[1]), random(size[0])
    for weight in (random(*size), random(*size).bfloat16().float()):
        packed = products.weight(weight)
        assert torch.equal(packed.plain(), weight)
        assert far(packed.product(x, bias), expected(x, weight, bias)) < 1e-5
        assert far(packed.product(x, None), expected(x, weight, None)) < 1e-5
    rounded = products.int8(weight)
    assert far(rounded.product(x, bias), expected(x, rounded.plain(), bias)) < 1e-5


@pytest.mark.parametrize("rows", ROWS)
def test_in_bfloat16_it_is_rounded_once(products: CpuProducts, rows: int) -> None:
    x, weight, bias = random(rows, 300).bfloat16(), random(50, 300).bfloat16(), random(50).bfloat16()
    made = products.weight(weight).product(x, bias)
    assert made.dtype == torch.bfloat16
    exact = expected(x, weight, bias)
    assert ((made.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    assert products.int8(weight).product(x, bias).dtype == torch.bfloat16


def test_what_16_bits_can_hold_is_kept_in_16(products: CpuProducts) -> None:
    weight = random(64, 64)
    assert kept_bytes(products.weight(weight)) == 4 * weight.numel()
    assert kept_bytes(products.weight(weight.bfloat16().float())) == 2 * weight.numel()
    assert kept_bytes(products.weight(weight.bfloat16())) == 2 * weight.numel()
    assert kept_bytes(products.int8(weight)) == weight.numel()


def kept_bytes(weight: PanelWeight) -> int:
    return weight._panels.untyped_storage().nbytes()


@pytest.mark.parametrize("form", ["weight", "int8"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_does_not_depend_on_those_beside_it(products: CpuProducts, form: str, threads: int) -> None:
    weight = getattr(products, form)(random(600, 700))
    x = random(120, 700)
    alone = torch.cat([weight.product(row[None], None) for row in x])
    torch.set_num_threads(threads)
    for rows in ROWS:
        assert torch.equal(weight.product(x[:rows], None), alone[:rows])
    x[1] = torch.nan
    made = weight.product(x[:3], None)
    assert torch.equal(made[::2], alone[:3:2])
    assert made[1].isnan().all()


def test_rows_may_stand_in_wider_ones(products: CpuProducts) -> None:
    wide, weight = random(9, 50), random(20, 30)
    packed = products.weight(weight)
    assert torch.equal(packed.product(wide[:, 10:40], None), packed.product(wide[:, 10:40].contiguous(), None))
    across = random(30, 9).t()
    assert torch.equal(packed.product(across, None), packed.product(across.contiguous(), None))
    assert torch.equal(packed.product(torch.empty(0, 30), None), torch.empty(0, 20))


def test_what_is_no_number_stays_so(products: CpuProducts) -> None:
    weight = random(20, 32)
    weight[3, 5] = torch.inf
    made = products.weight(weight).product(torch.ones(1, 32), None)
    assert made[0, 3] == torch.inf
    assert made.isfinite().sum() == 19
