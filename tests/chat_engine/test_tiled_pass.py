"""Steps over tiles, with a real model: by the interpreter of the Triton language where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from chat_engine.native import decode_graphs, model_runner, tiled_pass
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Row, Started
from tests.chat_engine.architectures import MAIN
from tests.chat_engine.builders import Inbox, checked_step, letter_tokenizer, make_config, make_request, save_model

pytest.importorskip("triton", reason="needs the Triton language: make test sets it up")

from chat_engine.native.triton_kernels import TritonKernels

BLOCK = 4


def run_again(work: Callable[[], object]) -> Callable[[], object]:
    """Takes the place of a CUDA graph: what is done over the same memory again, step by step."""
    work()
    return work


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(MAIN["mistral with a sliding window"](), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runners(folder: Path) -> Iterator[Callable[..., ModelRunner]]:
    """Makes runners over tiles, and one over copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled_pass, "_processors", lambda device: 4)

        def make(*, tiles: bool = True, graphs: bool = False) -> ModelRunner:
            patch.setattr(model_runner, "find_kernels", lambda *_: TritonKernels() if tiles else None)
            config = make_config(
                model=str(folder), dtype="float32", device="cpu", block_size=BLOCK, kv_cache_tokens=320,
                max_sequences=6, max_step_tokens=32,
            )  # fmt: skip
            runner = ModelRunner(config)
            if graphs:
                runner._forward.capture(runner._longest, run_again)
            return runner

        yield make


def answers(runner: ModelRunner, *, ahead: bool) -> list[str]:
    """What a crowd hears: long and short, with a beginning in common and without, greedy and by chance."""
    runner.runs_ahead = ahead
    start, followed, failures = runner.start, [], []

    def noted(rows: list[Row]) -> Started:
        followed.extend(row for row in rows if row.follows is not None)
        try:
            return start(rows)
        except Exception as error:  # the engine would compute each row by itself
            failures.append(error)
            raise

    runner.start = noted
    engine = NativeEngine(make_config(max_sequences=6, queue_room=20), runner, letter_tokenizer())
    kinds = ({"temperature": 0}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}, {"logprobs": 2})
    inboxes = []
    for number, kind in enumerate(kinds):
        inboxes.append(Inbox())
        prompt = [7, 8, 9] * 4 + [number + 3] if number % 2 else [number + 5] * (9 * number + 1)
        request = make_request(f"r{number}", prompt, 12 - 3 * number, seed=number, ignore_eos=True, **kind)
        engine.submit(request, inboxes[-1])
        checked_step(engine)
    while checked_step(engine):
        pass
    assert not failures
    assert bool(followed) is ahead
    assert all(inbox.last.error is None for inbox in inboxes)
    return [inbox.text for inbox in inboxes]


@pytest.mark.parametrize(("graphs", "ahead"), [(False, False), (True, False), (True, True)])
def test_answers_are_those_over_copies(runners: Callable[..., ModelRunner], graphs: bool, ahead: bool) -> None:
    expected = answers(runners(tiles=False), ahead=False)
    assert answers(runners(graphs=graphs), ahead=ahead) == expected


def test_a_step_is_computed_by_the_smallest_graph_that_holds_it() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert decode_graphs.batch_sizes(1, gpu) == decode_graphs.batch_sizes(1, cpu) == [1]
    assert decode_graphs.batch_sizes(6, gpu) == [1, 2, 4, 6]
    assert decode_graphs.batch_sizes(40, cpu) == [*range(1, 17), *range(18, 33, 2), 36, 40]
    assert decode_graphs.batch_sizes(4096, gpu)[-1] == 512
    sizes = decode_graphs.batch_sizes(300, gpu)
    for decodes in range(1, 301):
        size = next(size for size in sizes if size >= decodes)
        assert size - decodes <= max(3, 7 if decodes < 64 else 16 if decodes <= 256 else 64)


def test_a_model_that_cannot_be_captured_is_computed_all_the_same(
    runners: Callable[..., ModelRunner], caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(runners(tiles=False), ahead=False)

    def fail(work: object) -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = runners(graphs=False)
    runner._forward.capture(4, fail)
    assert "cannot be captured" in caplog.text
    assert not runner._forward.runs_ahead
    assert answers(runner, ahead=False) == expected


def test_compiled_layers_answer_the_same_and_leave_nothing_behind(runners: Callable[..., ModelRunner]) -> None:
    """As traced: by a backend that generates no code."""
    runner = runners(tiles=False)
    expected = answers(runner, ahead=False)
    model = runner._model
    with decode_graphs.compiled_layers(model, backend="eager"):
        compiled = [module for module in model.modules() if module._compiled_call_impl]
        assert len(compiled) == model.config.num_hidden_layers
        assert answers(runner, ahead=False) == expected
    assert not [module for module in model.modules() if module._compiled_call_impl]
