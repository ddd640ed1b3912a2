from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from tests.embeddings import checkpoints


@pytest.fixture(scope="session", params=["bert", "roberta", "qwen3"])
def any_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each family, without a recipe."""
    config: PreTrainedConfig = getattr(checkpoints, request.param)()
    return checkpoints.save(tmp_path_factory.mktemp(request.param), config)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT, without a recipe; not to be changed."""
    return checkpoints.save(tmp_path_factory.mktemp("bert"), checkpoints.bert())
