from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from rich.console import Console

from local import console, demo
from triton_chat import ChatClient, ChatResult, InvalidRequestError
from triton_chat.types import ChatEvent, ToolCallDelta


class Script:
    """A client whose answers are given: each a list of events, or an error."""

    def __init__(self, *answers: list[ChatEvent] | Exception) -> None:
        self.asked: list[tuple[list[Any], dict[str, Any]]] = []
        self._answers = list(answers)

    def stream(self, messages: list[Any], **options: Any) -> Iterator[ChatEvent]:
        self.asked.append((list(messages), options))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return iter(answer)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Console:
    out = Console(record=True, width=120, highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "out", out)
    return out


def client(script: Script) -> ChatClient:
    return cast(ChatClient, script)


def test_figures_of_an_answer() -> None:
    answer = ChatResult("x", "stop", 8, 57, 0, ttft_s=0.04, duration_s=0.5, tokens_per_s=121.4)
    assert demo.figures(answer) == "first token after 40 ms, 57 tokens, 121 tokens/s"


def test_an_answer_that_came_at_once_has_no_rate() -> None:
    assert demo.figures(ChatResult("x", "stop", 8, 57, 0, ttft_s=0.04)) == "first token after 40 ms, 57 tokens"


def test_a_call_is_made_and_its_result_goes_back(printed: Console) -> None:
    call = [
        ChatEvent("", tool_calls=(ToolCallDelta(0, "call_1", "get_weather"),)),
        ChatEvent("", "tool_calls", tool_calls=(ToolCallDelta(0, arguments='{"city": "Paris"}'),)),
    ]
    script = Script(call, [ChatEvent("Sunny."), ChatEvent("", "stop")])
    demo.call_a_tool(client(script))
    assert [options["tools"] for _, options in script.asked] == [[demo.WEATHER], [demo.WEATHER]]
    question, turn, result = script.asked[1][0]
    assert question["content"] == demo.TOOL_QUESTION
    assert turn["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1"
    assert result["content"] == demo.get_weather("Paris")
    lines = printed.export_text().splitlines()
    assert lines[1:] == [
        f"> {demo.TOOL_QUESTION}  (with the tool get_weather)",
        '→ get_weather({"city": "Paris"})',
        "← sunny, 20 °C",
        "Sunny.",
    ]


def test_a_model_that_calls_nothing_has_answered(printed: Console) -> None:
    script = Script([ChatEvent("I do not know.", "stop")])
    demo.call_a_tool(client(script))
    assert len(script.asked) == 1
    assert printed.export_text().endswith("I do not know.\n")


def test_json_follows_a_schema(printed: Console) -> None:
    text = json.dumps({"name": "Anna", "age": 31})
    script = Script([ChatEvent(text, "stop")])
    demo.answer_as_json(client(script))
    assert script.asked[0][1]["structured_outputs"] == {"json": demo.PERSON}
    assert printed.export_text().endswith(f"{text}\n")


def test_thoughts_stand_above_the_answer(printed: Console) -> None:
    events = [ChatEvent("", reasoning="The tens "), ChatEvent("", reasoning="differ."), ChatEvent("73."), ChatEvent("")]
    script = Script(events)
    demo.think_first(client(script))
    assert script.asked[0][1]["chat_template_kwargs"] == {"enable_thinking": True}
    assert printed.export_text().endswith("\nThe tens differ.\n73.\n")


def test_what_another_model_cannot_do_does_not_end_the_demo(printed: Console) -> None:
    script = Script(InvalidRequestError("the chat template takes no tools", field="tools"))
    demo._if_the_model_can(demo.call_a_tool, client(script))
    assert printed.export_text().endswith("Not with this model: tools: the chat template takes no tools\n")


def test_it_says_how_the_same_server_is_kept_running() -> None:
    assert demo.make_serve("native") == "make serve"
    assert demo.make_serve("vllm") == "make serve ENGINE=vllm"
