"""What agents and extraction pipelines are written with, unmodified, in front of the whole stack and tiny-chat.

What the model says is its own affair; the programs fail where a value is not of the type that they asked for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from local.gateway import LocalGateway
from tests.gateway.programs import AGENTS, OWN, run_node, run_python

pytestmark = pytest.mark.agents


@pytest.fixture(scope="module")
def url(gateway: LocalGateway) -> str:
    return f"{gateway.url}/v1"


@pytest.mark.parametrize("environment", [OWN, AGENTS], ids=["newest", "older"])
def test_openai(url: str, environment: Path) -> None:
    found = run_python("with_openai", url, "chat", environment)
    assert set(found["parse"]) == {"city", "country", "population"}
    assert found["parse_call"]["finish_reason"] == "tool_calls"
    assert found["stream_call"]["call"]["name"] == "get_weather"
    assert found["stream_call"]["usage"]["completion_tokens"] > 1
    assert found["older_form"]["name"] == "get_weather"
    assert set(found["asynchronous"]["arguments"]) == {"city"}


def test_langchain(url: str) -> None:
    found = run_python("with_langchain", url, "chat")
    for calls in (found["bind_tools"]["calls"], found["stream"], found["named"]):
        assert [name for name, _ in calls] == ["get_weather"] * len(calls)
        assert calls
    assert all(set(place) == {"city", "country"} for place in found["with_structured_output"].values())


def test_pydantic_ai(url: str) -> None:
    found = run_python("with_pydantic_ai", url, "chat")
    assert all(set(place) == {"city", "country"} for place in found["typed"].values())


def test_instructor(url: str) -> None:
    assert all(set(place) == {"city", "country"} for place in run_python("with_instructor", url, "chat").values())


def test_openai_for_javascript(url: str) -> None:
    found = run_node(url, "chat")
    assert [call["name"] for call in found["calls"]] == ["get_weather"]
