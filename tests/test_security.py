"""SECURITY.md names tests and settings that exist."""

from __future__ import annotations

import re

import pytest

from chat_engine.config import EngineConfig
from chat_gateway.settings import GatewaySettings
from local.options import ROOT
from tests.helm.cases import defaults

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
VALUES = re.findall(r"`((?:gateway|networkPolicy|triton|model)\.[\w.]+)`", PAGE)


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_the_tests_are_there(file: str, name: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*(?:async )?def {name}\(", source, re.MULTILINE)


@pytest.mark.parametrize("path", VALUES)
def test_the_values_are_there(path: str) -> None:
    value = defaults()
    for part in path.split("."):
        assert part in value
        value = value[part]


def test_the_settings_are_there() -> None:
    assert set(re.findall(r"`engine\.(\w+)", PAGE)) <= EngineConfig.model_fields.keys()
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", PAGE)) <= {name.upper() for name in GatewaySettings.model_fields}


def test_whatever_cannot_be_done_is_held_by_a_test() -> None:
    promises = [row for row in ROWS if re.match(r"\| (cannot|has no) ", row)]
    assert len(promises) > 10
    assert [row for row in promises if "tests/" not in row] == []
