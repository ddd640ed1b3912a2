"""What docs/gateway.md and docs/compatibility.md list is held against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from chat_gateway.app import create_app
from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.embeddings import EmbeddingRequest
from chat_gateway.schemas.tokenize import TokenizeRequest
from chat_gateway.settings import GatewaySettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8")
COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")


def test_the_settings_and_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) ?\|", PAGE, re.MULTILINE))
    defaults = {
        name.upper(): "" if field.default in (None, ()) else str(field.default)
        for name, field in GatewaySettings.model_fields.items()
    }
    assert rows == defaults


def test_the_routes() -> None:
    documented = set(re.findall(r"`((?:GET|POST) /[^`]*)`", PAGE))
    schema = create_app(GatewaySettings()).openapi()["paths"]
    assert documented == {f"{method.upper()} {path}" for path, methods in schema.items() for method in methods}


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest])
def test_every_field_is_told_of(request_type: type[BaseModel]) -> None:
    honoured = PAGE[PAGE.index("## What is honoured") : PAGE.index("## Errors")]
    told = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]*)`", honoured))))
    assert set(request_type.model_fields) - told - {"model"} == set()


def test_every_code_is_told_of() -> None:
    table = PAGE[PAGE.index("## Errors") : PAGE.index("## Several")]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gateway").rglob("*.py"))
    raised = set(re.findall(r'code="([a-z_]+)"', sources)) - {"cancelled"}  # nobody is there to be told
    assert raised - set(re.findall(r"`([a-z_]+)`", table)) == set()


def test_what_holds_a_habit_is_there() -> None:
    held = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", COMPATIBILITY)
    assert len(held) > 20
    for path, name in held:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), name
