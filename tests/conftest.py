from __future__ import annotations

import importlib.util

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        choices=("native", "vllm"),
        default="native",
        help="engine of the servers in tests/integration; with vllm only the tests that depend on it are run",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a CUDA device where there is none; torch is imported only if such a test was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not cuda_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device (torch.cuda.is_available() is false)"))


def cuda_available() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
