"""The tables of docs/gateway.md are held against the code."""

from __future__ import annotations

import re
from pathlib import Path

from chat_gateway.app import create_app
from chat_gateway.settings import GatewaySettings

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


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
