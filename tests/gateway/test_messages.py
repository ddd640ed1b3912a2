"""The turns of a conversation: what is taken, what the model server is given, what is refused and where."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionMessage,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from pydantic import BaseModel

from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.messages import AssistantMessage, FunctionMessage, Message, SpokenMessage, ToolMessage
from tests.gateway.bodies import CHAT, HELLO, mistakes

IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/cat.png"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"}


def sent(*messages: dict[str, Any]) -> list[dict[str, object]]:
    """What the model server is given for them."""
    return ChatCompletionRequest.model_validate({**CHAT, "messages": list(messages)}).to_model()


class TestFieldsOfOpenAI:
    @pytest.mark.parametrize(
        ("ours", "theirs", "extras"),
        [
            (SpokenMessage, ChatCompletionSystemMessageParam, {"tool_calls"}),
            (SpokenMessage, ChatCompletionDeveloperMessageParam, {"tool_calls"}),
            (SpokenMessage, ChatCompletionUserMessageParam, {"tool_calls"}),
            (AssistantMessage, ChatCompletionAssistantMessageParam, {"reasoning", "reasoning_content", "annotations"}),
            (ToolMessage, ChatCompletionToolMessageParam, {"name", "tool_calls"}),
            (FunctionMessage, ChatCompletionFunctionMessageParam, set()),
        ],
    )
    def test_every_field_of_a_message_is_known(self, ours: type[BaseModel], theirs: Any, extras: set[str]) -> None:
        assert set(ours.model_fields) == set(theirs.__annotations__) | extras

    def test_every_field_of_an_answer_may_come_back(self) -> None:
        assert set(ChatCompletionMessage.model_fields) <= set(AssistantMessage.model_fields)

    def test_every_role_is_one_of_them(self) -> None:
        union, _ = get_args(Message)
        roles = [role for kind in get_args(union) for role in get_args(kind.model_fields["role"].annotation)]
        assert roles == ["system", "developer", "user", "assistant", "tool", "function"]


class TestSent:
    def test_texts(self) -> None:
        parts = [{"type": "text", "text": "Was ist das?"}, {"type": "text", "text": "这是什么？"}]
        assert sent(
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": ""},
        ) == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Was ist das?\n这是什么？"},
            {"role": "assistant", "content": ""},
        ]

    def test_names_go_along(self) -> None:
        turns = sent(
            {"role": "system", "content": "x", "name": "rules"},
            {"role": "user", "content": "x", "name": "Ann Ä."},
            {"role": "assistant", "content": "x", "name": None},
            {"role": "user", "content": "x", "name": ""},
        )
        assert [turn.get("name") for turn in turns] == ["rules", "Ann Ä.", None, None]
        assert "name" not in turns[2]
        assert "name" not in turns[3]

    @pytest.mark.parametrize("content", [{}, {"content": None}])
    def test_calls_without_a_content(self, content: dict[str, Any]) -> None:
        turns = sent({"role": "assistant", "tool_calls": [CALL], **content}, {**RESULT, "name": "weather"})
        assert turns == [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "12 °C", "name": "weather", "tool_call_id": "call_1"},
        ]

    def test_calls_with_a_content(self) -> None:
        (turn,) = sent({"role": "assistant", "content": [{"type": "text", "text": "Wait."}], "tool_calls": [CALL]})
        assert turn == {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}

    def test_an_id_and_a_type_are_all_that_a_call_needs_beside_its_function(self) -> None:
        streamed = {"index": 0, "id": "call_1", "function": {**CALL["function"], "parsed_arguments": {}}}  # type: ignore[dict-item]
        assert sent({"role": "assistant", "tool_calls": [streamed]}) == sent(
            {"role": "assistant", "tool_calls": [CALL]}
        )

    def test_results_in_parts_or_without_any(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        assert [turn["content"] for turn in sent({**RESULT, "content": parts}, {**RESULT, "content": []})] == [
            "a\nb",
            "",
        ]

    @pytest.mark.parametrize(
        "thought",
        [
            {"reasoning": "hm"},
            {"reasoning_content": "hm"},
            {"reasoning": "hm", "reasoning_content": "hm"},
            {"reasoning": None, "reasoning_content": "hm"},
        ],
    )
    def test_reasoning(self, thought: dict[str, Any]) -> None:
        assert sent({"role": "assistant", "content": "x", **thought}) == [
            {"role": "assistant", "content": "x", "reasoning": "hm"}
        ]

    def test_an_answer_that_was_nothing_but_reasoning(self) -> None:
        assert sent({"role": "assistant", "content": None, "reasoning": "hm"})[0]["content"] == ""

    def test_an_old_call_and_its_result(self) -> None:
        turns = sent(
            *HELLO,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": None},
            {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
            {"role": "function", "name": "g", "content": "5"},
        )
        first, second = (turns[index]["tool_calls"][0] for index in (1, 3))  # type: ignore[index]
        assert (first["function"]["name"], second["function"]["name"]) == ("f", "g")
        assert turns[2] == {"role": "tool", "content": "", "name": "f", "tool_call_id": first["id"]}
        assert turns[4] == {"role": "tool", "content": "5", "name": "g", "tool_call_id": second["id"]}
        assert first["id"] != second["id"]
        assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in (first, second)), "as Mistral's want it"


class TestSentBack:
    """What was an answer, in the forms in which clients keep it."""

    @pytest.mark.parametrize(
        "answer",
        [
            ChatCompletionMessage(role="assistant", content="hi"),
            ChatCompletionMessage(role="assistant", content="hi", refusal=None, tool_calls=[], annotations=[]),
            ChatCompletionMessage.model_validate(
                {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL], "reasoning": "hm",
                 "reasoning_content": "hm", "parsed": None, "provider": "x"}
            ),
        ],
    )  # fmt: skip
    def test_an_answer(self, answer: ChatCompletionMessage) -> None:
        whole, short = answer.model_dump(mode="json"), answer.model_dump(mode="json", exclude_unset=True)
        assert sent(whole) == sent(short)
        assert set(sent(whole)[0]) <= {"role", "content", "tool_calls", "reasoning"}

    def test_what_other_servers_add_to_one(self) -> None:
        extras = {"annotations": [{"type": "url_citation"}], "provider_specific_fields": {}, "reasoning_details": []}
        assert sent({"role": "assistant", "content": "x", **extras}) == [{"role": "assistant", "content": "x"}]

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ({"content": [{"type": "text", "text": "x", "annotations": [], "cache_control": None}]}, "x"),
            ({"content": [{"type": "refusal", "refusal": "no"}]}, "no"),
            ({"content": [{"type": "thinking", "thinking": "hm", "text": {}}, {"type": "text", "text": "x"}]}, "x"),
            ({"content": [{"type": "text", "text": None}, {"type": "text", "text": "x"}]}, "x"),
            ({"content": [{"type": "thinking", "thinking": "hm"}]}, ""),
            ({"content": None, "refusal": "no"}, "no"),
            ({"content": "x", "refusal": "no"}, "x\nno"),
            ({"content": "x", "refusal": ""}, "x"),
            ({"content": "x", "refusal": {}}, "x"),
            ({"content": None, "audio": {"id": "a"}}, ""),
            ({"content": "x", "annotations": {}}, "x"),
            ({"content": "x", "reasoning": ["hm"], "reasoning_content": {"text": "hm"}}, "x"),
        ],
    )
    def test_what_else_other_servers_make(self, message: dict[str, Any], text: str) -> None:
        assert sent({"role": "assistant", **message}) == [{"role": "assistant", "content": text}]

    def test_reasoning_that_is_no_text_hides_none_that_is_one(self) -> None:
        (turn,) = sent({"role": "assistant", "content": "x", "reasoning": {}, "reasoning_content": "hm"})
        assert turn["reasoning"] == "hm"

    @pytest.mark.parametrize(
        ("arguments", "told"), [({"arguments": None}, "{}"), ({}, "{}"), ({"arguments": {"a": 1}}, {"a": 1})]
    )
    def test_calls_of_other_servers(self, arguments: dict[str, Any], told: object) -> None:
        call = {"id": "call_1", "type": None, "function": {"name": "f", **arguments}}
        (turn,) = sent({"role": "assistant", "content": None, "tool_calls": [call]})
        function = {"name": "f", "arguments": told}
        assert turn["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]

    def test_fields_of_other_roles_that_are_null(self) -> None:
        """Many clients have one type for all roles."""
        nulls = dict.fromkeys(
            ("name", "tool_calls", "tool_call_id", "function_call", "reasoning", "refusal", "anything_else")
        )
        for message in (*HELLO, {"role": "assistant", "content": "x"}, {"role": "system", "content": "x"}):
            assert sent(nulls | message) == sent(message)
        assert sent({**nulls, **RESULT}) == sent(RESULT)
        assert sent({**HELLO[0], "tool_calls": []}) == HELLO


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("hello", ()),
        ({"content": "x"}, ("role",)),
        ({"role": "critic", "content": "x"}, ("role",)),
        ({"role": 5, "content": "x"}, ("role",)),
        ({"role": None, "content": "x"}, ("role",)),
        ({"role": "user", "content": None}, ("content",)),
        ({"role": "user", "content": 5}, ("content",)),
        ({"role": "user", "content": []}, ("content",)),
        ({"role": "user", "content": "x", "name": 5}, ("name",)),
        ({"role": "user", "content": "x", "nonsense": 5}, ("nonsense",)),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, ("tool_calls",)),
        ({"role": "user", "content": "x", "tool_call_id": "call_1"}, ("tool_call_id",)),
        ({"role": "user", "content": [{"type": "text"}]}, ("content", 0, "text")),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, ("content", 0, "text")),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}, ("content", 1, "type")),
        ({"role": "user", "content": [AUDIO]}, ("content", 0, "type")),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, ("content", 0, "type")),
        ({"role": "assistant", "content": ["x"]}, ("content", 0)),
        ({"role": "assistant", "content": [{"text": "x"}]}, ("content", 0, "type")),
        ({"role": "assistant", "tool_calls": {}}, ("tool_calls",)),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, ("tool_calls", 0, "function")),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": None}]}, ("tool_calls", 0, "id")),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, ("tool_calls", 0, "type")),
        (
            {"role": "assistant", "tool_calls": [CALL, {**CALL, "function": {"name": "f", "arguments": []}}]},
            ("tool_calls", 1, "function", "arguments"),
        ),
        ({"role": "assistant", "function_call": {"arguments": "{}"}}, ("function_call", "name")),
        (
            {"role": "assistant", "tool_calls": [CALL], "function_call": {"name": "f", "arguments": "{}"}},
            ("function_call",),
        ),
        ({"role": "tool", "content": "x"}, ("tool_call_id",)),
        ({"role": "tool", "content": "x", "tool_call_id": None}, ("tool_call_id",)),
        ({"role": "tool", "content": "x", "tool_call_id": 7}, ("tool_call_id",)),
        ({"role": "tool", "tool_call_id": "call_1"}, ("content",)),
        ({"role": "tool", "content": [IMAGE], "tool_call_id": "call_1"}, ("content", 0, "type")),
        ({"role": "function", "content": "x"}, ("name",)),
    ],
)
def test_refused_by_place(message: Any, place: tuple[object, ...]) -> None:
    found = mistakes(ChatCompletionRequest, {**CHAT, "messages": [*HELLO, message]})
    assert next(iter(found)) == ("messages", 1, *place)


def old_call(name: str) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": "{}"}}


def old_result(name: str) -> dict[str, Any]:
    return {"role": "function", "name": name, "content": "5"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([old_result("f")], "must follow"),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}, old_result("weather")], "must follow"),
        ([old_call("f"), old_result("f"), old_result("f")], "the only result"),
        ([old_call("f"), old_result("g")], "'f', not 'g'"),
        ([old_call("f"), old_call("g"), old_result("f")], "'g', not 'f'"),
    ],
)
def test_an_old_result_is_that_of_the_call_before_it(messages: list[dict[str, Any]], words: str) -> None:
    found = mistakes(ChatCompletionRequest, {**CHAT, "messages": messages})
    ((place, sentence),) = found.items()
    assert place == ("messages", len(messages) - 1, "name")
    assert words in sentence


@pytest.mark.parametrize("messages", [[], None, "hello", {}])
def test_there_must_be_some(messages: object) -> None:
    assert list(mistakes(ChatCompletionRequest, {**CHAT, "messages": messages})) == [("messages",)]


def test_whether_a_call_makes_sense_is_the_model_servers_to_judge() -> None:
    nonsense = {"id": "", "type": "function", "function": {"name": "no such", "arguments": "not JSON"}}
    sent({"role": "assistant", "tool_calls": [nonsense, nonsense]}, {**RESULT, "tool_call_id": "unknown"})
