"""What a checkpoint says about turning its hidden states into a vector, in the files of sentence-transformers.

`modules.json` lists the steps, the folder of the pooling step has a `config.json`, and `sentence_bert_config.json` has
the longest text. A checkpoint without them is a plain encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chat_engine.errors import UnsupportedModelError
from embedder.config import PoolingName

_STEPS = {"Transformer", "Pooling", "Normalize"}
_POOLING_FOLDER = "1_Pooling"
# The mean over the square root of the length differs from the mean in length only, which is made 1 anyway.
_FLAGS: dict[str, PoolingName] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_MODES: dict[str, PoolingName] = {"cls": "cls", "mean": "mean", "mean_sqrt_len_tokens": "mean", "lasttoken": "last"}


@dataclass(frozen=True)
class Recipe:
    """How texts of a checkpoint become vectors; None where it does not say."""

    pooling: PoolingName | None = None
    max_length: int | None = None
    lower_case: bool = False


def read_recipe(folder: Path) -> Recipe:
    """Reads the recipe of the checkpoint in `folder`.

    Raises:
        UnsupportedModelError: it has a step that is not done here, such as a dense layer after the pooling.
    """
    steps: list[Any] = _json(folder / "modules.json") or []
    paths = {str(step["type"]).rpartition(".")[2]: str(step["path"]) for step in steps}
    if unknown := sorted(paths.keys() - _STEPS):
        raise UnsupportedModelError(f"modules.json: steps of the kind {', '.join(unknown)} are not supported")
    pooling: dict[str, Any] | None = _json(folder / paths.get("Pooling", _POOLING_FOLDER) / "config.json")
    settings: dict[str, Any] = _json(folder / "sentence_bert_config.json") or {}
    return Recipe(
        pooling=None if pooling is None else _pooling(pooling),
        max_length=settings.get("max_seq_length"),
        lower_case=bool(settings.get("do_lower_case")),
    )


def _pooling(settings: Mapping[str, Any]) -> PoolingName:
    """From one flag a mode, or from the mode's name, as newer versions write it."""
    if "pooling_mode" in settings:
        wanted, known = [str(settings["pooling_mode"])], _MODES
    else:
        wanted, known = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on], _FLAGS
    if len(wanted) != 1 or wanted[0] not in known:
        raise UnsupportedModelError(
            f"pooling: {' and '.join(wanted) or 'none'} is not supported; use one of {', '.join(known)}"
        )
    return known[wanted[0]]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
