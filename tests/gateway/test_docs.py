"""What docs/gateway.md and docs/compatibility.md list is held against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from chat_gateway.app import create_app
from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.embeddings import EmbeddingRequest
from chat_gateway.schemas.tokenize import TokenizeRequest
from chat_gateway.settings import GatewaySettings
from tests.gateway.apps import app_for, served
from tests.gateway.bodies import OF_CHAT, OF_COMPLETIONS, OF_EMBEDDINGS
from tests.gateway.fakes import FakeClient
from tests.gateway.obliging import ANSWER, THOUGHT, obliging

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


def test_what_is_said_to_be_refused_is_no_field_that_is_honoured() -> None:
    table = PAGE[PAGE.index("| field | accepted value |") : PAGE.index("The gateway checks the types")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line]
    refused = set(re.findall(r"`([a-z_]+)`", " ".join(cells)))
    assert refused - {*OF_CHAT, *OF_COMPLETIONS, *OF_EMBEDDINGS, "best_of"} == set()


def test_each_curl_is_taken(gateway: TestClient, fake: FakeClient) -> None:
    found = re.findall(r"^curl -s localhost:9000(\S+) .*? -d '(.*?)'$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == 2
    for path, body in found:
        assert gateway.post(path, json=json.loads(body)).status_code == 200


def test_each_program_runs(capsys: pytest.CaptureFixture[str], fake: FakeClient) -> None:
    fake.script = obliging
    with served(app_for(fake)) as url:
        for program in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
            exec(program.replace("http://localhost:9000", url), {"__name__": "program"})
    assert capsys.readouterr().out == f"{ANSWER}\ncity='Köln' country='Köln'\n{THOUGHT}{ANSWER}"
    assert [call.request.chat_template_kwargs for call in fake.calls][-1] == {"enable_thinking": True}


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
