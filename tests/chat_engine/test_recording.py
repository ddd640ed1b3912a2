"""Work written down once and done again: by itself, and as the steps of models."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chat_engine.native.cpu_calls import listening
from chat_engine.native.decode_graphs import DecodeGraphs, batch_sizes
from chat_engine.native.elementwise import Elementwise
from chat_engine.native.model_loader import LoadedModel
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.packing import PackedLinear
from chat_engine.native.recording import CannotRecordError, Recorder
from chat_engine.native.runner import Row
from chat_engine.native.sampler import SamplingState
from chat_engine.native.tiled_pass import TiledPass
from chat_engine.native.weights import PackedWeight
from chat_engine.request import SamplingParams
from tests.chat_engine.architectures import MAIN, OTHERS
from tests.chat_engine.builders import make_config, save_model

Work = Callable[[Tensor], Tensor]
GREEDY = SamplingState.start(SamplingParams(temperature=0), 0, frozenset(), ())


@pytest.fixture
def recorder(cpu_library: ctypes.CDLL) -> Recorder:
    return Recorder(cpu_library)


def again(recorder: Recorder, work: Work, x: Tensor) -> Work:
    """The work as a recording that was made of it with `x`."""
    given, made = x.clone(), torch.empty_like(work(x))
    run = recorder(lambda: made.copy_(work(given)))

    def replay(other: Tensor) -> Tensor:
        given.copy_(other)
        made.fill_(torch.nan)
        run()
        return made.clone()

    return replay


def layers(x: Tensor) -> Tensor:
    """Views, copies, results of several tensors, numbers made from nothing, and changes in place."""
    a, b = x.view(4, 2, 6).unbind(1)
    values, places = torch.cat([a, b + 1], 1).topk(3)
    y = F.linear(values, torch.ones(6, 3)) + a.t().contiguous().t()
    y[1:] += torch.arange(18.0).view(3, 6)
    y.mul_(2).index_put_((torch.tensor([0, 2]),), torch.zeros(6))
    picked = y[places[:, 0] % 4]
    return torch.where(picked > 3, picked.float().softmax(1), y).to(torch.float64).float() + x.view(4, 12)[:, ::2]


def random(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def test_the_same_is_done_with_other_numbers(recorder: Recorder) -> None:
    replay = again(recorder, layers, random(4, 12))
    for factor in (1.0, -3.0, 100.0):
        assert torch.equal(replay(factor * random(4, 12)), layers(factor * random(4, 12)))


def test_recordings_do_not_disturb_each_other(recorder: Recorder) -> None:
    wide = random(6, 3000)
    small = again(recorder, layers, random(4, 12))
    large = again(recorder, lambda x: layers(x[:4]) @ wide, random(40, 12))
    for _ in range(2):
        assert torch.equal(small(random(4, 12)), layers(random(4, 12)))
        assert torch.equal(large(random(40, 12)), layers(random(40, 12)[:4]) @ wide)


def test_memory_is_used_again(recorder: Recorder) -> None:
    def deep(x: Tensor) -> Tensor:
        for _ in range(50):
            x = (x * 2).neg()
        return x

    again(recorder, deep, random(1000))
    assert 2 * 4000 <= len(recorder._memory) < 4 * 4100


def test_compiled_functions_are_called_without_python(recorder: Recorder, cpu_library: ctypes.CDLL) -> None:
    operations, weight = Elementwise(cpu_library), random(8)

    def block(x: Tensor) -> Tensor:
        normed = operations.rms_norm(x, weight, 1e-5)
        return x + operations.silu_times(normed, normed * 1)

    calls: list[object] = []
    with listening(lambda function, *_: calls.append(function)):
        replay = again(recorder, block, random(3, 8))
        calls.clear()
        assert torch.equal(replay(random(3, 8) + 1), block(random(3, 8) + 1))
    assert len(calls) == 2  # of `block` itself


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * x.sum().item(),
        lambda x: x[x[:, 0] > 0],
        lambda x: x[x.nonzero()[:, 0]],
        lambda x: x if x.max() > 3 else -x,
        lambda x: torch.masked_select(x, x > 0),
    ],
)
def test_what_depends_on_the_numbers_is_refused(recorder: Recorder, work: Work) -> None:
    with pytest.raises(RuntimeError, match="depends on the numbers"):
        recorder(lambda: work(random(4, 12)))


# Steps of models. Answers, of crowds and alone, are those of `test_engine_vs_generate`, whose steps are recorded too.


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", [*MAIN, *OTHERS])
def test_a_step_of_a_model_is_the_same(name: str, dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of all its sizes, with other tokens than were there when it was recorded."""
    with caplog.at_level(logging.WARNING, "chat_engine.native.tiled_pass"):
        runner = load(save_model({**MAIN, **OTHERS}[name](), tmp_path), dtype=dtype)
    assert isinstance(runner._forward, TiledPass)
    graphs = runner._forward._graphs
    if name == "gpt2":
        assert graphs is None
        assert "cannot be captured, which is slower: what comes of aten.item" in caplog.text
        return
    assert graphs is not None, caplog.text
    for size in batch_sizes(6, torch.device("cpu")):
        for shares in (False, True):
            graph = graphs._graph(size, shares)
            graph.capture()
            graph.check()  # raises where it is not


@pytest.mark.parametrize("name", MAIN)
def test_so_is_one_with_products_of_torch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors with 16-bit products, whose weights are packed for oneDNN."""
    pack = LoadedModel.pack
    monkeypatch.setattr(LoadedModel, "pack", lambda loaded, _: pack(loaded, None))
    runner = load(save_model(MAIN[name](), tmp_path))
    packed = [module for module in runner._model.modules() if isinstance(module, PackedLinear)]
    assert packed
    assert all(isinstance(module._product.weight, PackedWeight) for module in packed)
    assert isinstance(runner._forward, TiledPass)
    graphs = runner._forward._graphs
    assert graphs is not None
    graph = graphs._graph(3, True)
    graph.capture()
    graph.check()


def test_a_step_that_would_not_be_the_same_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = load(save_model(MAIN["qwen2"](), tmp_path))
    forward = runner._forward
    assert isinstance(forward, TiledPass)

    def once(work: Callable[[], object]) -> Callable[[], None]:
        work()
        return lambda: None

    forward._graphs = None
    forward.capture(4, once)
    assert "a captured step gives other logits" in caplog.text
    assert not isinstance(forward._graphs, DecodeGraphs)


def test_a_step_that_cannot_be_recorded_when_it_comes_is_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = load(save_model(MAIN["qwen2"](), tmp_path))
    forward = runner._forward
    assert isinstance(forward, TiledPass)
    rows = [Row([5 + i], 1, [i], GREEDY) for i in range(3)]
    expected = runner.start(rows).results()

    def refuses(work: Callable[[], object]) -> Callable[[], object]:
        raise CannotRecordError("what comes of it depends on the numbers")

    graphs = forward._graphs
    assert graphs is not None
    graphs._graphs[3, False] = graphs._graph(3, False)
    monkeypatch.setattr(graphs._graphs[3, False], "_by", refuses)
    assert runner.start(rows).results() == expected
    assert "which is slower: what comes of it depends" in caplog.text
    assert runner.start(rows).results() == expected


def test_long_steps_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat_engine.native.model_runner._LONG_S", 0.0)
    forward = load(save_model(MAIN["qwen2"](), tmp_path))._forward
    assert isinstance(forward, TiledPass)
    assert forward._graphs is None


def load(folder: Path, dtype: str = "float32") -> ModelRunner:
    return ModelRunner(
        make_config(model=str(folder), dtype=dtype, device="cpu", block_size=4, kv_cache_tokens=400, max_sequences=6)
    )
