"""Tools and messages as chat clients send them: read, or refused with the field that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_engine.errors import InvalidArgumentError
from chat_engine.reading.chat_parameters import NOTHING, ChatParameters, read_chat_parameters
from chat_engine.reading.messages import Call, read_messages
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.request_parser import RequestParser, WireRequest
from chat_engine.request import ChatRequest
from tests.chat_engine.builders import byte_level_tokenizer, examples, make_config
from tests.chat_engine.chat_templates import QWEN3, WITHOUT_TOOLS

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = [{"role": "user", "content": "Is it warm in Oslo?"}]


def tool(name: str = "weather", **more: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def make_parser(template: str | None = QWEN3, **settings: object) -> RequestParser:
    prompts = PromptEncoder(PreTrainedTokenizerFast(tokenizer_object=byte_level_tokenizer(), chat_template=template))
    return RequestParser(prompts, make_config(**settings), 100_000, 300, {})


PARSER = make_parser()


def parse(chat: object = None, messages: object = QUESTION, parser: RequestParser = PARSER, **more: Any) -> ChatRequest:
    fields = {name: json.dumps(value).encode() for name, value in more.items() if name.endswith("_parameters")}
    raw = json.dumps(chat).encode() if chat is not None else None
    if "text_input" in more:
        fields["text_input"] = more["text_input"]
    else:
        fields["messages"] = json.dumps(messages).encode()
    return parser.parse(WireRequest(id="r", chat_parameters=raw, exclude_input_in_output=False, **fields))


def refused(chat: object = None, messages: object = QUESTION, **more: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(chat, messages, **more)
    message = str(caught.value)
    assert len(message) < 1000
    assert not any(leak in message for leak in ("pydantic", "Traceback", "\n"))
    return caught.value


def read(given: object) -> ChatParameters:
    return read_chat_parameters(json.dumps(given).encode(), make_config())


# chat_parameters


def test_nothing_is_a_conversation_without_tools() -> None:
    for chat in (NOTHING, read({}), read(dict.fromkeys(ChatParameters.model_fields))):
        assert (chat.tools, chat.must_call, chat.usable_tools, chat.parse) == ((), False, (), True)


def test_the_choice_says_which_tools_are_shown_and_which_may_be_called() -> None:
    tools = [tool("a"), tool("b")]

    def sorted_out(choice: object) -> tuple[list[str], list[str], bool]:
        chat = read({"tools": tools, "tool_choice": choice})
        shown, usable = ([one.function.name for one in some] for some in (chat.shown_tools, chat.usable_tools))
        return shown, usable, chat.must_call

    assert sorted_out(None) == sorted_out("auto") == (["a", "b"], ["a", "b"], False)
    assert sorted_out("required") == (["a", "b"], ["a", "b"], True)
    assert sorted_out(named("b")) == (["a", "b"], ["b"], True)
    assert sorted_out("none") == ([], [], False)


def test_a_tool_reaches_the_template_as_models_know_it() -> None:
    chat = read({"tools": [tool(strict=True, description=None), {"type": "function", "function": {"name": "now"}}]})
    assert [one.for_template() for one in chat.tools] == [
        {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]


def test_tools_that_must_not_be_called_are_not_shown() -> None:
    assert "weather" in parse({"tools": [tool()]}).echo
    assert parse({"tools": [tool()], "tool_choice": "none"}).echo == parse().echo


@pytest.mark.parametrize(
    ("chat", "field", "complaint"),
    [
        ([], "chat_parameters", "must be a JSON object (got [])"),
        ({"tool": []}, "tool", "unknown parameter (value []); allowed are tools, tool_choice, "),
        ({"tools": {}}, "tools", "must be a valid list (got {})"),
        ({"tools": ["weather"]}, "tools[0]", "must be an object (got "),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Field required"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "must be 'function' (got 'web_search')"),
        ({"tools": [{"function": {"name": "a"}}]}, "tools[0].type", "Field required"),
        ({"tools": [tool(), {**tool("b"), "cache": 1}]}, "tools[1].cache", "unknown field"),
        ({"tools": [tool(schema={})]}, "tools[0].function.schema", "unknown field"),
        ({"tools": [tool("")]}, "tools[0].function.name", "must be 1 to 64 letters (a to z), digits, _ and -"),
        ({"tools": [tool("get weather")]}, "tools[0].function.name", "must be 1 to 64 letters"),
        ({"tools": [tool("get.weather")]}, "tools[0].function.name", "must be 1 to 64 letters"),
        ({"tools": [tool("weather\n")]}, "tools[0].function.name", "must be 1 to 64 letters"),
        ({"tools": [tool("w" * 65)]}, "tools[0].function.name", "must be 1 to 64 letters"),
        ({"tools": [tool("wetter_é")]}, "tools[0].function.name", "must be 1 to 64 letters"),
        ({"tools": [tool(7)]}, "tools[0].function.name", "must be a valid string (got 7)"),
        ({"tools": [tool(description=7)]}, "tools[0].function.description", "must be a valid string (got 7)"),
        ({"tools": [tool(description="a\0")]}, "tools[0].function.description", "holds a NUL character"),
        ({"tools": [tool(description="\ud83d")]}, "tools[0].function.description", "holds half a surrogate pair"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "must be a JSON schema of the type object"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters", "must be a JSON schema of"),
        (
            {"tools": [tool(parameters={"a": float("nan")})]},
            "tools[0].function.parameters.a",
            "must be a finite number",
        ),
        ({"tools": [tool("a"), tool("b"), tool("a")]}, "tools[2].function.name", "two tools have the name a"),
        ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools", "129 tools given; at most 128 are allowed"),
        ({"tool_choice": "required"}, "tool_choice", "required needs tools"),
        ({"tool_choice": "auto", "tools": []}, "tool_choice", "auto needs tools"),
        ({"tool_choice": named("a")}, "tool_choice.function.name", "no tool has the name 'a'; give tools"),
        (
            {"tools": [tool()], "tool_choice": named("a")},
            "tool_choice.function.name",
            "no tool has the name 'a'; there",
        ),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "must be none, auto, required, or an object that"),
        (
            {"tools": [tool()], "tool_choice": ["auto"]},
            "tool_choice",
            "must be none, auto, required, or an object that",
        ),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", "Field required"),
        ({"tools": [tool()], "tool_choice": {"type": "tool"}}, "tool_choice.type", "must be 'function' (got 'tool')"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "must be true or false (got 1)"),
        ({"parse": "no"}, "parse", "must be true or false (got 'no')"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "must be an object (got "),
        (
            {"chat_template_kwargs": {"thinking": True}},
            "chat_template_kwargs.thinking",
            "the model's chat template does not read it; it reads: enable_thinking",
        ),
        (
            {"chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs.messages",
            "set by the server; leave it out",
        ),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "set by the server"),
        ({"chat_template_kwargs": {"eos_token": "x"}}, "chat_template_kwargs.eos_token", "set by the server"),
        ({"chat_template_kwargs": {"enable_thinking": "\0"}}, "chat_template_kwargs.enable_thinking", "holds a NUL"),
    ],
)
def test_what_is_wrong_is_refused_with_its_field(chat: object, field: str, complaint: str) -> None:
    error = refused(chat)
    assert (error.field, str(error).removeprefix(f"{field}: ").startswith(complaint)) == (field, True), str(error)


@pytest.mark.parametrize(
    ("parameters", "field", "complaint"),
    [
        ({"properties": ["a"]}, "properties", "must be an object (got ['a'])"),
        ({"properties": {"a": 7}}, "properties.a", "must be an object (got 7)"),
        ({"properties": {"a": {"enum": 5}}}, "properties.a.enum", "must be a valid list (got 5)"),
        ({"properties": {"a": {"pattern": 5}}}, "properties.a.pattern", "must be a valid string (got 5)"),
        ({"properties": {"a": {"minLength": -1}}}, "properties.a.minLength", "must be greater than or equal to 0"),
        ({"properties": {"a": {"type": ["null", 5]}}}, "properties.a.type", "must be the name of a type or a list"),
        ({"required": 5}, "required", "must be a valid list (got 5)"),
        ({"anyOf": [{"properties": {"b": None}}]}, "anyOf[0].properties.b", "must be an object (got None)"),
        ({"$defs": {"x": {"type": 3}}}, "$defs.x.type", "must be the name of a type or a list of names (got 3)"),
    ],
)
def test_a_schema_of_arguments_that_is_none_is_refused_at_its_place(
    parameters: dict[str, Any], field: str, complaint: str
) -> None:
    error = refused({"tools": [tool("a"), tool("b", parameters=parameters)]})
    assert error.field == f"tools[1].function.parameters.{field}"
    assert complaint in str(error)


@pytest.mark.parametrize("name", ChatParameters.model_fields)
def test_without_messages_each_parameter_is_refused_by_name(name: str) -> None:
    values: dict[str, Any] = {
        "tools": [tool()],
        "tool_choice": "none",
        "chat_template_kwargs": {"enable_thinking": True},
    }
    error = refused({name: values.get(name, False)}, text_input=b"hello")
    assert error.field == name
    assert "only for messages" in str(error)
    assert parse({name: None}, text_input=b"hello").echo == "hello"


def test_options_of_the_template_are_taken_from_either_place_and_not_differently_from_both() -> None:
    closed = parse({"add_generation_prompt": False}).echo
    assert closed == parse(sampling_parameters={"add_generation_prompt": False}).echo != parse().echo
    both = {"chat": {"add_generation_prompt": False}, "sampling_parameters": {"add_generation_prompt": False}}
    assert parse(**both).echo == closed
    error = refused({"add_generation_prompt": False}, sampling_parameters={"add_generation_prompt": True})
    assert str(error) == "add_generation_prompt: given twice, as False and as True; give it once"


def test_a_variable_of_the_template_is_given_to_it() -> None:
    assert parse({"chat_template_kwargs": {"enable_thinking": False}}).echo.endswith("<think>\n\n</think>\n\n")
    for absent in ({"enable_thinking": True}, {"enable_thinking": None}, {"thinking": None}):
        assert parse({"chat_template_kwargs": absent}).echo == parse().echo


def test_a_forced_call_goes_with_no_other_form_of_the_answer() -> None:
    regex = {"sampling_parameters": {"structured_outputs": {"regex": "a+"}}}
    for choice in ("required", named("weather")):
        error = refused({"tools": [tool()], "tool_choice": choice}, **regex)
        assert error.field == "structured_outputs"
    assert parse({"tools": [tool()]}, **regex).sampling.structured_outputs is not None


def test_a_template_that_cannot_show_tools_refuses_them() -> None:
    deaf = make_parser(WITHOUT_TOOLS)
    error = refused({"tools": [tool()]}, parser=deaf)
    assert str(error) == "tools: the model's chat template does not show tools to the model"
    assert parse({"tools": [tool()], "tool_choice": "none"}, parser=deaf).echo


def test_the_settings_say_how_many_tools_there_may_be() -> None:
    assert refused({"tools": [tool("a"), tool("b")]}, parser=make_parser(max_tools=1)).field == "tools"


@pytest.mark.parametrize("depth", [90, 200, 900, *range(940, 1000, 7), 100_000])
@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs", "tool_choice", "unknown"])
def test_nesting_as_deep_as_can_be_is_refused_or_shown(name: str, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    value = {
        "tools": f'[{{"type": "function", "function": {{"name": "a", "parameters": {{"x": {deep}}}}}}}]',
        "chat_template_kwargs": f'{{"enable_thinking": {deep}}}',
    }.get(name, deep)
    wire = WireRequest("r", messages=json.dumps(QUESTION).encode(), chat_parameters=f'{{"{name}": {value}}}'.encode())
    if depth == 90 and name in ("tools", "chat_template_kwargs"):
        assert PARSER.parse(wire).prompt_ids
    else:
        with pytest.raises(InvalidArgumentError):
            PARSER.parse(wire)


# messages


def call(name: str = "weather", arguments: object = '{"city": "Oslo"}', call_id: str = "call_1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(**fields: object) -> list[dict[str, Any]]:
    return [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call(**fields)]}]


def result(content: object = "17 degrees", **fields: object) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": "call_1", **fields}


def test_a_tool_is_called_and_answers() -> None:
    messages = read_messages([*called(), result()])
    assert messages[1].calls == (Call("call_1", "weather", {"city": "Oslo"}, '{"city": "Oslo"}'),)
    assert (messages[1].content, messages[2].content, messages[2].name) == ("", "17 degrees", "weather")
    echo = parse({"tools": [tool()]}, [*called(), result()]).echo
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in echo
    assert "<tool_response>\n17 degrees\n</tool_response>" in echo


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', ' {"city":"\\u004fslo"}\n', {"city": "Oslo"}])
def test_arguments_are_text_or_an_object(arguments: object) -> None:
    assert '"arguments": {"city": "Oslo"}' in parse(messages=called(arguments=arguments)).echo


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"a\u0000b", "a\ufffdb"),
        (r"\ud800", "\ufffd"),
        (r"\uD83D\ude00\uDE00\ud83d", "😀\ufffd\ufffd"),
        (r"\\u0000\\\ud800", "\\u0000\\\ufffd"),
        (r"\"\n", '"\n'),
    ],
)
def test_a_conversation_goes_on_whatever_valid_json_the_model_has_written(written: str, read: str) -> None:
    (made,) = read_messages(called(arguments=f'{{"a": "{written}"}}'))[1].calls
    assert made.arguments == {"a": read}
    assert json.loads(made.text) == made.arguments


@pytest.mark.parametrize("arguments", ["", " ", None, {}, "{}"])
def test_a_call_without_arguments(arguments: object) -> None:
    assert '"arguments": {}}' in parse(messages=called(arguments=arguments)).echo


def test_what_an_answer_came_with_may_be_sent_back() -> None:
    answer = {
        "role": "assistant", "content": None, "refusal": None, "audio": None, "annotations": [], "function_call": None,
        "reasoning_content": "Look it up.", "tool_calls": [{**call(), "index": 0}], "provider": {"x": 1},
    }  # fmt: skip
    echo = parse(messages=[*QUESTION, answer, result(name=None)]).echo
    assert "<think>\nLook it up.\n</think>" in echo
    assert "provider" not in echo
    same = {**answer, "reasoning": "Look it up.", "reasoning_content": None}
    assert parse(messages=[*QUESTION, same, result()]).echo == echo


def test_null_means_absent_whoever_speaks() -> None:
    nulls = dict.fromkeys(("name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"))
    assert parse(messages=[{**nulls, **QUESTION[0]}]).echo == parse().echo


def test_a_developer_is_the_system_to_a_template_that_does_not_know_one() -> None:
    developer, system = ([{"role": role, "content": "Be brief."}, *QUESTION] for role in ("developer", "system"))
    assert parse(messages=developer).echo == parse(messages=system).echo


def test_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "Is it warm"}, {"type": "text", "text": "in Oslo?"}]
    assert parse(messages=[{"role": "user", "content": parts}]).echo == parse(
        messages=[{"role": "user", "content": "Is it warm\nin Oslo?"}]
    ).echo  # fmt: skip
    assert "17\ndegrees" in parse(
        messages=[*called(), result([{"type": "text", "text": "17"}, {"type": "text", "text": "degrees"}])]
    ).echo  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "field", "complaint"),
    [
        ([{"role": "assistant", "content": None}], "messages[0].content", "a string, or a list of parts"),
        ([{"role": "assistant"}], "messages[0].content", "a string, or a list of parts"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "messages[0].content", "a string, or a list"),
        ([{"role": "user", "content": None}], "messages[0].content", "a string, or a list of parts"),
        (
            [{"role": "user", "content": {}}],
            "messages[0].content",
            "must be a string, or a list of parts of the type text (",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
            "only parts of the type text are supported (got 'image_url')",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "Field required"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "must be an object (got "),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type", "Field required"),
        ([{"role": "user", "content": "x", "id": 1}], "messages[0].id", "unknown field"),
        ([{"role": "user", "content": "x", "tool_calls": [call()]}], "messages[0].tool_calls", "unknown field"),
        ([*called(), {"role": "tool", "content": "x"}], "messages[2].tool_call_id", "Field required"),
        ([*called(), result(tool_call_id=None)], "messages[2].tool_call_id", "Field required"),
        (
            [*called(), result(tool_call_id="call_2")],
            "messages[2].tool_call_id",
            "no assistant's message before it has",
        ),
        ([result(), *called()], "messages[0].tool_call_id", "no assistant's message before it has a call with this id"),
        ([*called(), result(None)], "messages[2].content", "a string, or a list of parts"),
        (called(arguments="{city: Oslo}"), "messages[1].tool_calls[0].function.arguments", "not JSON"),
        (called(arguments='{"city": "Os'), "messages[1].tool_calls[0].function.arguments", "not JSON"),
        (called(arguments="[1]"), "messages[1].tool_calls[0].function.arguments", "must be a JSON object (got [1])"),
        (called(arguments=[]), "messages[1].tool_calls[0].function.arguments", "must be a JSON object (got [])"),
        (called(arguments=["x"]), "messages[1].tool_calls[0].function.arguments", "must be a JSON object (got ['x'])"),
        (called(arguments='{"a": NaN}'), "messages[1].tool_calls[0].function.arguments.a", "must be a finite number"),
        (called(arguments="[" * 900), "messages[1].tool_calls[0].function.arguments", ""),
        (called(name=""), "messages[1].tool_calls[0].function.name", "must have at least 1 character"),
        (called(call_id=""), "messages[1].tool_calls[0].id", "must have at least 1 character"),
        (called(call_id=None), "messages[1].tool_calls[0].id", "must be a valid string (got None)"),
        ([*QUESTION, {"role": "assistant", "tool_calls": "x"}], "messages[1].tool_calls", "must be a valid list"),
        (
            [*QUESTION, {"role": "assistant", "content": "x", "reasoning": 1}],
            "messages[1].reasoning",
            "must be a valid",
        ),
    ],
)
def test_what_is_wrong_in_messages_is_refused_with_its_field(messages: object, field: str, complaint: str) -> None:
    error = refused(None, messages)
    assert (error.field, str(error).removeprefix(f"{field}: ").startswith(complaint)) == (field, True), str(error)


def test_a_call_cannot_be_continued() -> None:
    assert refused({"continue_final_message": True}, called()).field == "continue_final_message"


def test_calls_and_results_that_the_template_leaves_out_are_refused() -> None:
    deaf = make_parser(WITHOUT_TOOLS)
    error = refused(None, [*called(), result()], parser=deaf)
    assert error.field == "messages[1].tool_calls"
    assert "leaves out calls of tools or what they return" in str(error)
    forgetful = make_parser(
        QWEN3.replace("{%- elif message.role == 'tool' %}", "{%- elif message.role == 'tool' and loop.last %}")
    )
    long = result("It has seventeen degrees there")
    assert parse(None, [*called(), long], parser=forgetful)
    error = refused(None, [*called(), long, *QUESTION], parser=forgetful)
    assert error.field == "messages[2].content"


# Whatever comes.

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(["function"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "function", "name", "parameters", "id", "arguments", "text", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


def survives(chat: object, messages: object) -> None:
    try:
        request = parse(chat, messages)
    except InvalidArgumentError as error:
        assert len(str(error).encode()) < 1000  # noqa: PT017
    else:
        assert request.prompt_ids


@examples(300)
@given(chat=st.dictionaries(st.sampled_from([*ChatParameters.model_fields, "x"]), JSON, max_size=4))
def test_any_parameters_are_read_or_refused(chat: object) -> None:
    survives(chat, QUESTION)


@examples(300)
@given(
    messages=st.lists(
        st.dictionaries(
            st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "reasoning"]),
            st.one_of(JSON, st.sampled_from(["user", "assistant", "tool"])),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_messages_are_read_or_refused(messages: object) -> None:
    survives(None, messages)
