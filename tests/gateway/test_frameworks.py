"""What agents and extraction pipelines are written with, unmodified, over HTTP, in front of a model that obliges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.apps import app_for, served
from tests.gateway.fakes import FakeClient
from tests.gateway.obliging import ANSWER, obliging
from tests.gateway.programs import AGENTS, OWN, run_node, run_python

pytestmark = pytest.mark.agents

PLACE = {"city": "Köln", "country": "DE"}
WEATHER = ["get_weather", {"city": "Köln"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    fake = FakeClient()
    fake.script = obliging
    with served(app_for(fake)) as address:
        yield f"{address}/v1"


@pytest.mark.parametrize("environment", [OWN, AGENTS], ids=["newest", "older"])
def test_openai(url: str, environment: Path) -> None:
    found = run_python("with_openai", url, "chat", environment)
    place = {**PLACE, "population": 12}
    called = found.pop("stream_call")
    assert found == {
        "parse": place,
        "parse_call": {"finish_reason": "tool_calls", "city": "Köln"},
        "stream_parse": place,
        "round_trip": ANSWER,
        "older_form": {"name": "get_weather", "arguments": {"city": "Köln"}, "answer": ANSWER},
        "asynchronous": {"parsed": place, "arguments": {"city": "Köln"}},
    }
    usage = called.pop("usage")
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (5, 1)
    assert called == {
        "events": ["chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"],
        "content": None,
        "call": {"id": "call_1", "type": "function", "name": "get_weather", "arguments": '{"city": "Köln"}'},
        "finish_reason": "tool_calls",
    }


def test_langchain(url: str) -> None:
    assert run_python("with_langchain", url, "chat") == {
        "bind_tools": {"calls": [WEATHER], "answer": ANSWER},
        "stream": [WEATHER],
        "named": [WEATHER],
        "with_structured_output": {"json_schema": PLACE, "function_calling": PLACE},
        "json_mode": {},
        "asynchronous": PLACE,
    }


def test_pydantic_ai(url: str) -> None:
    assert run_python("with_pydantic_ai", url, "chat") == {
        "tool": {"asked": ["Köln"], "answer": ANSWER},
        "typed": {"tool": PLACE, "native": PLACE},
        "stream": ANSWER,
    }


def test_instructor(url: str) -> None:
    modes: dict[str, Any] = dict.fromkeys(("TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "FUNCTIONS"), PLACE)
    assert run_python("with_instructor", url, "chat") == modes | {"partial": PLACE, "asynchronous": PLACE}


def test_openai_for_javascript(url: str) -> None:
    found = run_node(url, "chat")
    assert set(found.pop("events")) == {"get_weather"}
    assert found == {
        "content": None,
        "calls": [{"type": "function", "id": "call_1", "name": "get_weather", "arguments": '{"city": "Köln"}'}],
        "finish_reason": "tool_calls",
        "answer": ANSWER,
    }
