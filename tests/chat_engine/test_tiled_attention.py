"""The attention kernels: those in the Triton language, on a GPU where there is one and else by its interpreter, and
those for CPUs, with each set of instructions that this one has."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chat_engine.native import decodes, tiles
from chat_engine.native.attention_kernels import Kernels, LayerAttention
from chat_engine.native.cpu_kernels import CpuKernels
from chat_engine.native.paged_cache import LayerShape, PagedCache
from chat_engine.native.step_inputs import StepInputs
from chat_engine.native.tiled import TiledBatch, find_kernels, kernels_work
from tests.chat_engine.builders import examples
from tests.chat_engine.conftest import CAPABILITIES, compiled
from tests.chat_engine.test_attention import FAMILY, SEQUENCES, Case, Step

pytest.importorskip("triton", reason="needs the Triton language: make test sets it up")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Under:
    """Kernels, and where they run."""

    kernels: Kernels
    device: torch.device
    dtypes: tuple[torch.dtype, ...]


def triton() -> Under:
    from chat_engine.native.triton_kernels import TritonKernels

    if torch.cuda.is_available():
        return Under(TritonKernels(), torch.device("cuda"), (torch.float32, torch.bfloat16, torch.float16))
    return Under(TritonKernels(), CPU, (torch.float32, torch.float16))  # numpy, which interprets, has no bfloat16


@pytest.fixture(params=["triton", *CAPABILITIES], scope="module")
def under(request: pytest.FixtureRequest) -> Under:
    if request.param == "triton":
        return triton()
    return Under(compiled(request.param), CPU, (torch.float32, torch.bfloat16))


@pytest.fixture(autouse=True)
def _cut_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_WORTH_KEYS", 64)
    monkeypatch.setattr(decodes, "_WORTH_TOKENS", 16)


CASES = st.builds(
    Case,
    sequences=SEQUENCES,
    block_size=st.sampled_from([1, 3, 4, 16]),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4, 9]),
    key_dim=st.sampled_from([8, 12]),
    value_dim=st.sampled_from([8, 20]),
    window=st.sampled_from([None, 1, 5, 100]),
    seed=st.integers(0, 3),
)


@examples(25)
@given(CASES)
def test_attention_is_what_the_textbook_says(under: Under, case: Case) -> None:
    step = Step(case, under.device, kernels=under.kernels, tiles=1)
    assert torch.allclose(step.run(), step.expected, atol=1e-3)


@pytest.mark.parametrize("window", [None, 30, 200])
@pytest.mark.parametrize("wanted", [1, 40])
def test_long_contexts_are_cut_and_put_together(under: Under, wanted: int, window: int | None) -> None:
    step = Step(
        Case([(700, 1), (290, 1), (64, 1), (3, 1), (90, 30)], window=window),
        under.device,
        kernels=under.kernels,
        tiles=wanted,
    )
    assert torch.allclose(step.run(), step.expected, atol=1e-3)


@pytest.mark.parametrize("window", [None, 3, 30, 100])
@pytest.mark.parametrize("group", [1, 4])
def test_decodes_that_begin_with_the_same_blocks_attend_to_them_together(
    under: Under, group: int, window: int | None
) -> None:
    sequences = [(40, 1), (25, 1), (34, 1), (37, 1), (30, 1), (9, 4)]
    step = Step(
        Case(sequences, shared=FAMILY, window=window, group=group), under.device, kernels=under.kernels, tiles=1
    )
    assert [(b.count, b.blocks) for b in step.beginnings] == [(4, 6)]
    assert torch.allclose(step.run(), step.expected, atol=1e-3)


def test_a_long_shared_beginning_is_cut_too(under: Under) -> None:
    step = Step(
        Case([(310, 1), (300, 1), (290, 1)], shared={1: (0, 70), 2: (0, 70)}),
        under.device,
        kernels=under.kernels,
        tiles=9,
    )
    assert [(b.count, b.blocks) for b in step.beginnings] == [(3, 70)]
    assert torch.allclose(step.run(), step.expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (80, 80), (256, 256)])
def test_sixteen_bits(under: Under, dtype: torch.dtype, dims: tuple[int, int]) -> None:
    if dtype not in under.dtypes:
        pytest.skip("these kernels do not compute with it here")
    case = Case([(300, 300), (3, 1), (170, 50), (1, 1), (513, 1)], block_size=16, key_dim=dims[0], value_dim=dims[1])
    step = Step(case, under.device, dtype, under.kernels, tiles=8)
    assert torch.allclose(step.run(), step.expected, atol=3e-2, rtol=3e-2)


def test_numbers_beyond_float16_do_not_reach_the_next_owner_of_a_block(under: Under) -> None:
    if torch.float16 not in under.dtypes:
        pytest.skip("these kernels do not compute with it")
    step = Step(Case([(6, 1), (9, 1)]), under.device, torch.float16, under.kernels, tiles=1)
    step.key[..., 0] = torch.inf
    step.value[..., 0] = torch.nan
    step.run()
    assert step.cache.keys[0].isfinite().all()
    assert step.cache.values[0].isfinite().all()


def test_a_sequence_does_not_depend_on_its_neighbours(under: Under) -> None:
    both = Step(
        Case([(40, 1), (300, 1)], block_size=16, key_dim=64, value_dim=64), under.device, kernels=under.kernels, tiles=1
    )
    together = both.run()
    alone = TiledBatch.of(under.kernels, both.cache, [both.spans[0]], both.case.group)
    q, k, v = (tensor[0, :, :1].transpose(0, 1) for tensor in (both.query, both.key, both.value))
    assert torch.equal(alone.attend(0, q, k, v, 64**-0.5, None)[0].cpu(), together[0])


def test_a_step_writes_its_keys_and_values_and_nothing_else(under: Under) -> None:
    step = Step(Case([(6, 2), (5, 5)]), under.device, kernels=under.kernels, tiles=1)
    before = step.cache.keys[0].flatten(0, 1).clone()
    step.run()
    after = step.cache.keys[0].flatten(0, 1)
    written = [s.blocks[at // 4] * 4 + at % 4 for s in step.spans for at in range(s.length - s.count, s.length)]
    assert torch.equal(after[written], step.key[0].transpose(0, 1))
    rest = torch.ones(len(after), dtype=torch.bool)
    rest[written] = False
    assert torch.equal(after[rest.to(under.device)], before[rest.to(under.device)])


# What is chosen while loading.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_a_cpu_gets(dtype: torch.dtype) -> None:
    kernels = find_kernels(CPU, dtype)
    assert (kernels is None) is (dtype == torch.float16 or shutil.which("g++") is None)
    assert kernels is None or kernels_work(kernels, 16, 4, LayerShape(2, 64, 64), dtype, CPU)


def test_without_compiled_kernels_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    assert CpuKernels.find(torch.float32, "none") is None
    assert "`make cpu-kernels` compiles it" in caplog.text


def test_kernels_that_are_wrong_do_not_work(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(CpuKernels):
        def attention(self, step: StepInputs) -> LayerAttention:
            right = super().attention(step)
            return lambda *arguments: right(*arguments) + 1

    found = find_kernels(CPU, torch.float32)
    assert isinstance(found, CpuKernels)
    assert not kernels_work(Wrong(found.library), 16, 4, LayerShape(2, 64, 64), torch.float32, CPU)
    assert "wrong here" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_work_on_cuda(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    kernels = find_kernels(device, dtype)
    assert kernels is not None
    assert kernels_work(kernels, 16, 4, LayerShape(2, 64, 64), dtype, device)
    assert PagedCache([LayerShape(2, 8, 12)], 4, 4, dtype, device, use_kernels=True).can_share
