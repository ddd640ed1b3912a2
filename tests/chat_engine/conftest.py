from __future__ import annotations

import ctypes
import logging
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers.utils import logging as hf_logging

from chat_engine.native import packing
from chat_engine.native.cpu_kernels import CpuKernels, cpu_capability
from chat_engine.native.engine import NativeEngine
from chat_engine.service.model_thread import ModelThread
from tests.chat_engine.builders import letter_tokenizer, make_config

CAPABILITIES = ["default", "avx2", "avx512", "avx512_bf16"]


@pytest.fixture(autouse=True, scope="package")
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="package")
def _small_layers_are_packed_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WORTH_WEIGHTS", 1)
        yield


@pytest.fixture(autouse=True)
def _no_step_fails(request: pytest.FixtureRequest) -> Iterator[None]:
    """A step that fails is computed again in parts: its answers are right all the same, and only the log tells."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("chat_engine.native.engine")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    if request.node.get_closest_marker("steps_fail") is None:
        assert not [message for message in said if "could not compute" in message]


@pytest.fixture(params=CAPABILITIES, scope="session")
def cpu_library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """The functions compiled for each set of instructions that this processor has."""
    return compiled(request.param).library


def compiled(capability: str) -> CpuKernels:
    """The kernels for a set of instructions; skips the test where they cannot run here."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    if capability not in CAPABILITIES[: CAPABILITIES.index(cpu_capability()) + 1]:
        pytest.skip(f"needs a processor with {capability}")
    found = CpuKernels.find(torch.float32, capability)
    assert found is not None, "make cpu-kernels compiles them"
    return found


@pytest.fixture
def threaded() -> Iterator[Callable[..., NativeEngine]]:
    """Makes engines with a thread, and closes them at the end."""
    engines: list[NativeEngine] = []

    def make(runner: object, on_failure: Callable[[], None] | None = None, **settings: object) -> NativeEngine:
        engines.append(NativeEngine(make_config(**settings), runner, letter_tokenizer(), on_failure, ModelThread()))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
