from __future__ import annotations

from pathlib import Path

import pytest

from chat_engine.config import EngineConfig
from chat_engine.model_loader import context_limits, load_model
from tests.chat_engine.architectures import MAIN, OTHERS, VOCAB, WINDOW, unused_window
from tests.chat_engine.builders import make_config, save_model

MODELS = {**MAIN, **OTHERS, "a window that attention is not told of": unused_window}


def settings(folder: Path, **more: object) -> EngineConfig:
    return make_config(model=str(folder), dtype="float32", device="cpu", **more)


@pytest.mark.parametrize("name", MODELS)
def test_the_limits_without_weights_are_those_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = save_model(MODELS[name](), tmp_path)
    loaded = load_model(settings(folder))
    (folder / "model.safetensors").unlink()
    limits = context_limits(settings(folder))
    assert (limits.max_model_len, limits.vocab_size) == (loaded.max_positions, loaded.vocab_size)


def test_a_window_that_attention_is_not_told_of_is_noticed_without_weights(tmp_path: Path) -> None:
    unused_window().save_pretrained(tmp_path)
    assert context_limits(settings(tmp_path)).max_model_len == WINDOW


def test_the_settings_may_lower_the_context(tmp_path: Path) -> None:
    unused_window().save_pretrained(tmp_path)
    limits = context_limits(settings(tmp_path, max_model_len=3))
    assert (limits.max_model_len, limits.vocab_size) == (3, VOCAB)
