"""`tools` and what else chooses a call, and the older `functions`; `response_format` and what else chooses a form."""

from __future__ import annotations

from itertools import permutations
from typing import Any, get_args

import pytest
from openai.types import shared_params
from openai.types.chat import (
    ChatCompletionAllowedToolsParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionNamedToolChoiceParam,
)
from openai.types.chat.completion_create_params import Function as OldFunctionParam
from openai.types.shared import ReasoningEffort
from openai.types.shared_params.response_format_json_schema import JSONSchema
from pydantic import BaseModel

from chat_gateway.schemas import constraints, tools
from chat_gateway.schemas.chat import ChatCompletionRequest
from chat_gateway.schemas.completions import CompletionRequest
from chat_gateway.schemas.effort import Effort, effort_kwargs
from tests.gateway.bodies import BODIES, CHAT, mistakes

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}
TIME = {"name": "time"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
NAMED = {"type": "function", "function": {"name": "time"}}


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({**CHAT, **fields})


def chosen(**fields: Any) -> dict[str, Any]:
    """What the model server is told about calls."""
    options = request(**fields).options({})
    return {name: options[name] for name in ("tools", "tool_choice", "parallel_tool_calls") if name in options}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    named = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tools.Tool, ChatCompletionFunctionToolParam),
        (tools.FunctionDefinition, shared_params.FunctionDefinition),
        (tools.OldFunction, OldFunctionParam),
        (tools.NamedTool, ChatCompletionNamedToolChoiceParam),
        (tools.AllowedTools, ChatCompletionAllowedToolsParam),
        (constraints.JsonSchemaFormat, shared_params.ResponseFormatJSONSchema),
        (constraints.JsonObjectFormat, shared_params.ResponseFormatJSONObject),
        (constraints.TextFormat, shared_params.ResponseFormatText),
        (constraints.NamedSchema, JSONSchema),
    ],
)
def test_every_field_of_openais_is_known(ours: type[BaseModel], theirs: Any) -> None:
    more = {"strict", "cache_control"} if ours is tools.Tool else set()
    assert {field.alias or name for name, field in ours.model_fields.items()} == set(theirs.__annotations__) | more


class TestTools:
    def test_as_they_are(self) -> None:
        assert chosen(tools=TOOLS, tool_choice="required", parallel_tool_calls=False) == {
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }

    def test_null_is_as_if_left_out(self) -> None:
        function = {"name": "f", "description": None, "parameters": None, "strict": None}
        nulls = {"tool_choice": None, "parallel_tool_calls": None, "functions": None, "function_call": None}
        assert chosen(tools=[{"type": "function", "function": function}], **nulls) == {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "tool_choice": None,
            "parallel_tool_calls": None,
        }

    @pytest.mark.parametrize(
        ("beside", "within", "sent"),
        [(True, {}, {"strict": True}), (True, {"strict": False}, {"strict": False}), (None, {}, {})],
    )
    def test_strict_beside_the_function_and_a_hint_of_caching(
        self, beside: bool | None, within: dict[str, Any], sent: dict[str, Any]
    ) -> None:
        hint = {"cache_control": {"type": "ephemeral"}, "strict": beside}
        found = chosen(tools=[{"type": "function", "function": {"name": "f", **within}, **hint}])
        assert found["tools"] == [{"type": "function", "function": {"name": "f", **sent}}]

    @pytest.mark.parametrize("choice", [None, "none", "auto"])
    @pytest.mark.parametrize("nothing", [None, []])
    def test_without_any_there_is_nothing_to_choose(self, nothing: object, choice: str | None) -> None:
        assert chosen(tools=nothing, tool_choice=choice, parallel_tool_calls=True) == {}

    @pytest.mark.parametrize("choice", ["required", NAMED])
    def test_what_cannot_be_is_the_model_servers_to_refuse(self, choice: object) -> None:
        assert chosen(tool_choice=choice) == {"tool_choice": choice}
        doubled = [*TOOLS, TOOLS[0], {"type": "function", "function": {"name": "not a name"}}] * 50
        assert chosen(tools=doubled, tool_choice=choice)["tools"] == doubled

    @pytest.mark.parametrize("choice", ["none", "auto", "required", NAMED])
    def test_choices(self, choice: object) -> None:
        assert chosen(tools=TOOLS, tool_choice=choice)["tool_choice"] == choice

    @pytest.mark.parametrize("mode", ["auto", "required"])
    def test_allowed_tools_are_all_that_the_model_sees(self, mode: str) -> None:
        found = chosen(tools=TOOLS, tool_choice=allowed("time", mode=mode))
        assert (found["tools"], found["tool_choice"]) == ([TOOLS[1]], mode)

    def test_a_mistake_in_an_allowed_tool_has_the_callers_index(self) -> None:
        assert request(tools=TOOLS, tool_choice=allowed("time")).names["tools[0]"] == "tools[1]"

    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"tools": {}}, ("tools",)),
            ({"tools": ["f"]}, ("tools", 0)),
            ({"tools": [{"function": TIME}]}, ("tools", 0, "type")),
            ({"tools": [{"type": "function"}]}, ("tools", 0, "function")),
            ({"tools": [{"type": "custom", "custom": TIME}]}, ("tools", 0, "type")),
            ({"tools": [TOOLS[0], {"type": "function", "function": {}}]}, ("tools", 1, "function", "name")),
            ({"tools": [{"type": "function", "function": {"name": 1}}]}, ("tools", 0, "function", "name")),
            (
                {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
                ("tools", 0, "function", "parameters"),
            ),
            (
                {"tools": [{"type": "function", "function": {"name": "f", "nonsense": 1}}]},
                ("tools", 0, "function", "nonsense"),
            ),
            ({"tools": TOOLS, "tool_choice": "always"}, ("tool_choice",)),
            ({"tools": TOOLS, "tool_choice": "weather"}, ("tool_choice",)),
            ({"tools": TOOLS, "tool_choice": {}}, ("tool_choice",)),
            ({"tools": TOOLS, "tool_choice": {"type": []}}, ("tool_choice",)),
            ({"tools": TOOLS, "tool_choice": {"type": "function"}}, ("tool_choice", "function")),
            ({"tools": TOOLS, "tool_choice": allowed()}, ("tool_choice", "allowed_tools", "tools")),
            ({"tools": TOOLS, "tool_choice": allowed("nope")}, ("tool_choice",)),
            ({"tools": TOOLS, "parallel_tool_calls": "yes"}, ("parallel_tool_calls",)),
        ],
    )
    def test_refused_by_place(self, fields: dict[str, Any], place: tuple[object, ...]) -> None:
        assert next(iter(mistakes(ChatCompletionRequest, {**CHAT, **fields}))) == place


class TestFunctions:
    def test_they_become_tools_of_which_one_may_be_called(self) -> None:
        for given in ({}, {"parallel_tool_calls": True}):
            found = chosen(functions=[WEATHER, TIME], **given)
            assert found == {"tools": TOOLS, "tool_choice": None, "parallel_tool_calls": False}

    @pytest.mark.parametrize(("given", "sent"), [("none", "none"), ("auto", "auto"), ({"name": "time"}, NAMED)])
    def test_choices(self, given: object, sent: object) -> None:
        assert chosen(functions=[TIME], function_call=given)["tool_choice"] == sent

    @pytest.mark.parametrize("choice", [None, "none", "auto"])
    def test_without_any_there_is_nothing_to_choose(self, choice: str | None) -> None:
        assert chosen(functions=[], function_call=choice) == {}

    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"functions": [{}]}, ("functions", 0, "name")),
            ({"functions": [TIME], "tools": TOOLS}, ("functions",)),
            ({"functions": [TIME], "tool_choice": "auto"}, ("functions",)),
            ({"function_call": "none", "tools": TOOLS}, ("function_call",)),
            ({"function_call": {"name": "time"}}, ("function_call",)),
            ({"functions": [TIME], "function_call": "required"}, ("function_call",)),
            ({"functions": [TIME], "function_call": {}}, ("function_call", "name")),
            ({"functions": [TIME], "function_call": 1}, ("function_call",)),
        ],
    )
    def test_refused_by_place(self, fields: dict[str, Any], place: tuple[object, ...]) -> None:
        assert next(iter(mistakes(ChatCompletionRequest, {**CHAT, **fields}))) == place


FORMS: dict[str, tuple[object, dict[str, object], str]] = {
    "response_format": (
        {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
        {"json": SCHEMA},
        "response_format.json_schema.schema",
    ),
    "structured_outputs": ({"regex": "a+"}, {"regex": "a+"}, "structured_outputs.regex"),
    "guided_json": (SCHEMA, {"json": SCHEMA}, "guided_json"),
    "guided_regex": ("a+", {"regex": "a+"}, "guided_regex"),
    "guided_choice": (["a", "b"], {"choice": ["a", "b"]}, "guided_choice"),
    "guided_grammar": ("start: A", {"grammar": "start: A"}, "guided_grammar"),
}
"""Field -> a value, what the model server is told, and what it complains of then."""
OF_BOTH = pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])


@OF_BOTH
class TestForms:
    @pytest.mark.parametrize("name", FORMS)
    def test_each_spelling(self, kind: Any, name: str) -> None:
        value, sent, place = FORMS[name]
        body = kind.model_validate({**BODIES[kind], name: value})
        assert body.sampling().to_dict()["structured_outputs"] == sent
        field = f"structured_outputs.{next(iter(sent))}"
        assert body.names.get(field, field) == place

    @pytest.mark.parametrize(
        ("value", "sent"),
        [
            (None, None),
            ({"type": "text"}, None),
            ({"type": "json_object"}, {"json": True}),
            ({"type": "json_schema", "json_schema": {"name": "any"}}, {"json": True}),
            ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}, {"json": {}}),
            (
                {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "description": "y", "schema": SCHEMA, "strict": False},
                },
                {"json": SCHEMA},
            ),
            (
                {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": None}},
                {"json": SCHEMA},
            ),
        ],
    )
    def test_formats(self, kind: Any, value: object, sent: object) -> None:
        body = kind.model_validate({**BODIES[kind], "response_format": value})
        assert body.sampling().structured_outputs == sent

    @pytest.mark.parametrize(
        ("value", "sent"),
        [
            ({"json": SCHEMA}, {"json": SCHEMA}),
            ({"json": True}, {"json": True}),
            ({"json": '{"type": "null"}'}, {"json": {"type": "null"}}),
            ({"json_object": True}, {"json": True}),
            ({"json": SCHEMA, "regex": None, "choice": None, "json_object": False}, {"json": SCHEMA}),
            ({"choice": ["a"], "disable_fallback": True, "disable_any_whitespace": False}, {"choice": ["a"]}),
        ],
    )
    def test_structured_outputs(self, kind: Any, value: object, sent: object) -> None:
        body = kind.model_validate({**BODIES[kind], "structured_outputs": value})
        assert body.sampling().structured_outputs == sent

    @pytest.mark.parametrize("value", [{"regex": ""}, {"choice": []}, {"regex": "("}, {"json": {"type": "x"}}])
    def test_what_makes_no_sense_is_the_model_servers_to_refuse(self, kind: Any, value: dict[str, Any]) -> None:
        body = kind.model_validate({**BODIES[kind], "structured_outputs": value})
        assert body.sampling().structured_outputs == value

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ({}, "has none of them"),
            ({"json_object": False}, "has none of them"),
            ({"disable_fallback": True}, "has none of them"),
            ({"regex": "a", "choice": ["b"]}, "has regex and choice"),
            ({"json": {}, "json_object": True}, "has json and json_object"),
            ({"grammar": "start: A", "json_object": True}, "has grammar and json_object"),
        ],
    )
    def test_exactly_one_kind(self, kind: Any, value: dict[str, Any], words: str) -> None:
        found = mistakes(kind, {**BODIES[kind], "structured_outputs": value})
        assert list(found) == [("structured_outputs",)]
        assert words in found[("structured_outputs",)]

    @pytest.mark.parametrize(("one", "other"), list(permutations(FORMS, 2)))
    def test_not_two_of_them(self, kind: Any, one: str, other: str) -> None:
        found = mistakes(kind, {**BODIES[kind], one: FORMS[one][0], other: FORMS[other][0]})
        ((place,),) = found
        assert place in (one, other)
        assert f"cannot be combined with {one if place == other else other}" in found[(place,)]
        if "response_format" in (one, other):
            assert place == "response_format"

    @pytest.mark.parametrize("name", [name for name in FORMS if name != "response_format"])
    def test_a_text_is_no_second_form(self, kind: Any, name: str) -> None:
        kind.model_validate({**BODIES[kind], name: FORMS[name][0], "response_format": {"type": "text"}})

    @pytest.mark.parametrize(
        ("fields", "place"),
        [
            ({"response_format": "json"}, ("response_format",)),
            ({"response_format": {}}, ("response_format", "type")),
            ({"response_format": {"type": "structural_tag"}}, ("response_format", "type")),
            ({"response_format": {"type": ["text"]}}, ("response_format", "type")),
            ({"response_format": {"type": "json_schema"}}, ("response_format", "json_schema")),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": "{}"}}},
                ("response_format", "json_schema", "schema"),
            ),
            ({"response_format": {"type": "json_object", "schema": {}}}, ("response_format", "schema")),
            ({"structured_outputs": "a"}, ("structured_outputs",)),
            ({"structured_outputs": {"json": False}}, ("structured_outputs", "json")),
            ({"structured_outputs": {"json": "no JSON"}}, ("structured_outputs", "json")),
            ({"structured_outputs": {"json": "[1]"}}, ("structured_outputs", "json")),
            ({"structured_outputs": {"choice": "a"}}, ("structured_outputs", "choice")),
            ({"structured_outputs": {"choice": ["a", 1]}}, ("structured_outputs", "choice", 1)),
            ({"structured_outputs": {"structural_tag": "x"}}, ("structured_outputs", "structural_tag")),
            (
                {"structured_outputs": {"regex": "a", "whitespace_pattern": "x"}},
                ("structured_outputs", "whitespace_pattern"),
            ),
            (
                {"structured_outputs": {"json": {}, "disable_any_whitespace": True}},
                ("structured_outputs", "disable_any_whitespace"),
            ),
            ({"structured_outputs": {"nonsense": 1}}, ("structured_outputs", "nonsense")),
            ({"guided_json": True}, ("guided_json",)),
            ({"guided_json": "x"}, ("guided_json",)),
            ({"guided_regex": 1}, ("guided_regex",)),
            ({"guided_choice": []}, None),
        ],
    )
    def test_refused_by_place(self, kind: Any, fields: dict[str, Any], place: tuple[object, ...] | None) -> None:
        if place is None:
            kind.model_validate({**BODIES[kind], **fields})
        else:
            assert list(mistakes(kind, {**BODIES[kind], **fields})) == [place]


class TestFormsBesideCalls:
    @pytest.mark.parametrize("name", FORMS)
    @pytest.mark.parametrize(
        "fields",
        [
            {"tools": TOOLS, "tool_choice": "required"},
            {"tools": TOOLS, "tool_choice": NAMED},
            {"tools": TOOLS, "tool_choice": allowed("time", mode="required")},
            {"functions": [TIME], "function_call": {"name": "time"}},
        ],
    )
    def test_a_call_that_is_forced_wins(self, fields: dict[str, Any], name: str) -> None:
        body = request(**fields, **{name: FORMS[name][0]})
        assert body.sampling().structured_outputs is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"tools": TOOLS},
            {"tools": TOOLS, "tool_choice": "auto"},
            {"tools": TOOLS, "tool_choice": "none"},
            {"tools": TOOLS, "tool_choice": allowed("time")},
            {"functions": [TIME], "function_call": "auto"},
        ],
    )
    def test_else_the_form_holds(self, fields: dict[str, Any]) -> None:
        body = request(**fields, response_format={"type": "json_object"})
        assert body.sampling().structured_outputs == {"json": True}


class TestReasoning:
    def test_the_efforts_are_openais(self) -> None:
        (choices,) = [kind for kind in get_args(ReasoningEffort) if kind is not type(None)]
        assert get_args(Effort) == get_args(choices)

    @pytest.mark.parametrize(
        ("known", "effort", "kwargs"),
        [
            ([], "none", {}),
            ([], "high", None),
            (["strftime_now"], "low", None),
            (["reasoning_effort"], "none", None),
            (["reasoning_effort"], "minimal", {"reasoning_effort": "low"}),
            (["reasoning_effort"], "medium", {"reasoning_effort": "medium"}),
            (["reasoning_effort"], "xhigh", {"reasoning_effort": "high"}),
            (["reasoning_effort"], "max", {"reasoning_effort": "high"}),
            (["reasoning_effort", "thinking"], "none", {"thinking": False}),
            (["enable_thinking"], "none", {"enable_thinking": False}),
            (["enable_thinking"], "minimal", {"enable_thinking": True}),
            (["thinking", "x"], "none", {"thinking": False}),
            (["thinking"], "max", {"thinking": True}),
            (["thinking", "reasoning_effort"], "low", {"reasoning_effort": "low", "thinking": True}),
        ],
    )
    def test_in_the_words_of_the_template(self, known: list[str], effort: Effort, kwargs: object) -> None:
        assert effort_kwargs(effort, known, "{% set reasoning_effort = none %} so high a maximum") == kwargs

    @pytest.mark.parametrize(
        ("template", "effort", "word"),
        [
            ("{% if reasoning_effort == 'none' %}", "none", "none"),
            ('{% if reasoning_effort in ["minimal", "low"] %}', "minimal", "minimal"),
            ("{% if reasoning_effort == 'max' %}", "max", "max"),
            ("{% if reasoning_effort == 'max' %}", "xhigh", "high"),
            ("{% if reasoning_effort == 'xhigh' %}", "max", "xhigh"),
            ("{% if reasoning_effort == 'max' %}", "low", "low"),
        ],
    )
    def test_the_nearest_effort_that_the_template_takes(self, template: str, effort: Effort, word: str) -> None:
        assert effort_kwargs(effort, ["reasoning_effort"], template) == {"reasoning_effort": word}

    def test_what_the_caller_says_to_the_template_goes_first(self) -> None:
        body = request(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False, "style": 1})
        assert body.options({"enable_thinking": True, "thinking": True})["chat_template_kwargs"] == {
            "enable_thinking": False,
            "thinking": True,
            "style": 1,
        }

    @pytest.mark.parametrize(
        "fields", [{"reasoning_effort": "some"}, {"include_reasoning": 1}, {"chat_template_kwargs": []}]
    )
    def test_refused_by_name(self, fields: dict[str, Any]) -> None:
        assert list(mistakes(ChatCompletionRequest, {**CHAT, **fields})) == [tuple(fields)]
