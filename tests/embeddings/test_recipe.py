from __future__ import annotations

from pathlib import Path

import pytest

from chat_engine.errors import UnsupportedModelError
from embedder.recipe import Recipe, read_recipe
from tests.embeddings.checkpoints import flags, with_recipe


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (flags("cls_token"), "cls"),
        (flags("mean_tokens"), "mean"),
        (flags("mean_sqrt_len_tokens"), "mean"),
        (flags("lasttoken"), "last"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling(tmp_path: Path, pooling: dict[str, object], expected: str) -> None:
    assert read_recipe(with_recipe(tmp_path, pooling)) == Recipe(pooling=expected)


def test_pooling_without_a_list_of_steps(tmp_path: Path) -> None:
    folder = with_recipe(tmp_path, flags("cls_token"))
    (folder / "modules.json").unlink()
    assert read_recipe(folder).pooling == "cls"


def test_a_plain_encoder_says_nothing(tmp_path: Path) -> None:
    assert read_recipe(tmp_path) == Recipe()


def test_length_and_case(tmp_path: Path) -> None:
    folder = with_recipe(tmp_path, None, settings={"max_seq_length": 256, "do_lower_case": True})
    assert read_recipe(folder) == Recipe(max_length=256, lower_case=True)
    folder = with_recipe(tmp_path, None, settings={"max_seq_length": None, "do_lower_case": False})
    assert read_recipe(folder) == Recipe()


@pytest.mark.parametrize(
    ("pooling", "part"),
    [
        (flags("max_tokens"), "pooling_mode_max_tokens"),
        (flags("cls_token", "mean_tokens"), "pooling_mode_cls_token and pooling_mode_mean_tokens"),
        (flags(), "none"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
    ],
)
def test_a_pooling_that_is_not_done_is_refused(tmp_path: Path, pooling: dict[str, object], part: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"pooling: {part} is not supported"):
        read_recipe(with_recipe(tmp_path, pooling))


def test_a_step_that_is_not_done_is_refused(tmp_path: Path) -> None:
    steps = ("Transformer", "Pooling", "Dense", "Normalize")
    with pytest.raises(UnsupportedModelError, match="Dense"):
        read_recipe(with_recipe(tmp_path, flags("mean_tokens"), steps))
