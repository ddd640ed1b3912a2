from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat_engine.errors import ConfigError
from embedder.config import load_config


def written(folder: Path, settings: object) -> Path:
    path = folder / "embedder.json"
    path.write_text(json.dumps(settings))
    return path


def test_the_file_beside_the_code(tmp_path: Path) -> None:
    written(tmp_path, {"model": "some/model", "pooling": "cls"})
    config = load_config(tmp_path, {"device": "cpu"}, {})
    assert (config.model, config.pooling, config.device, config.dtype) == ("some/model", "cls", "cpu", "auto")


def test_the_file_wins_over_the_instance_group(tmp_path: Path) -> None:
    written(tmp_path, {"model": "m", "device": "cuda:1"})
    assert load_config(tmp_path, {"device": "cpu"}, {}).device == "cuda:1"


def test_the_environment_names_another_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"model": "other"})
    assert load_config(Path("/nowhere"), {}, {"TRITON_CHAT_EMBEDDINGS_CONFIG": str(path)}).model == "other"


def test_the_environment_names_another_model(tmp_path: Path) -> None:
    written(tmp_path, {"model": "m"})
    assert load_config(tmp_path, {}, {"TRITON_CHAT_EMBEDDINGS_MODEL": "n"}).model == "n"


def test_a_folder_is_seen_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "settings").mkdir()
    path = written(tmp_path / "settings", {"model": "../models/mine"})
    config = load_config(tmp_path, {}, {"TRITON_CHAT_EMBEDDINGS_CONFIG": str(path)})
    assert config.model == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model": "m", "poling": "cls"}, ["poling", "'cls'"]),
        ({"model": "m", "pooling": "max"}, ["pooling", "'max'", "'mean', 'cls'"]),
        ({"model": "m", "threads": "2"}, ["threads", "'2'", "integer"]),
        ({"model": "m", "max_batch_tokens": 0}, ["max_batch_tokens", "0", "greater than or equal to 1"]),
        ({"model": "m", "device": "tpu"}, ["device", "'tpu'"]),
        ({}, ["model"]),
        ([], ["JSON object"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, settings: object, parts: list[str]) -> None:
    written(tmp_path, settings)
    with pytest.raises(ConfigError) as failure:
        load_config(tmp_path, {}, {})
    assert [part for part in parts if part not in str(failure.value)] == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.json: No such file"):
        load_config(tmp_path, {}, {})
    (tmp_path / "embedder.json").write_text("{")
    with pytest.raises(ConfigError, match="are not JSON"):
        load_config(tmp_path, {}, {})
