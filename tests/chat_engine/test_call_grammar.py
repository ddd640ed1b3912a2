"""Grammars for calls: in each family's syntax they take what the model was trained to write, and nothing else."""

from __future__ import annotations

import json
import re
import time
from functools import cache

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from chat_engine.answer_format import AnswerFormat, Writing
from chat_engine.reading.call_grammar import CallGrammar, Signature
from chat_engine.reading.lark import Lark
from chat_engine.reading.structured import lark
from chat_engine.reading.tool_schemas import as_read, parameters
from chat_engine.text.answer_formats import known_formats
from local.options import DEFAULT_MODEL as TINY_CHAT
from tests.chat_engine.answers import Recorded, read

END = 5
FUNCTIONS = [
    Signature(
        "get_weather",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    ),
    Signature("now", {"type": "object", "properties": {}}),
]
PARIS = {"city": "Paris, «巴黎» 🗼", "days": 3, "unit": "C"}
FORMATS = {format_.name: format_ for format_ in known_formats().values() if format_.call}
MARKER = re.compile(r"<[^<>\s=]+>|\[[A-Z_]+\]")


def call(writing: Writing, name: str, arguments: dict[str, object]) -> str:
    form = writing.arguments
    if form == "json":
        text = json.dumps(arguments, ensure_ascii=False)
    else:
        values = {key: v if isinstance(v, str) else json.dumps(v) for key, v in arguments.items()}
        text = "".join(form.before_key + key + form.after_key + v + form.after_value for key, v in values.items())
    return writing.before_name + name + writing.before_arguments + text + writing.after_arguments


def calls(answer_format: AnswerFormat, *each: tuple[str, dict[str, object]]) -> str:
    assert answer_format.call
    writing = answer_format.call.written
    written = (call(writing, name, arguments) for name, arguments in each)
    return writing.before_all + writing.between.join(written) + writing.after_all


@cache
def tokenizer(name: str, kind: str) -> Tokenizer:
    """With the format's markers as text, as added tokens or as special ones: checkpoints differ."""
    found = Tokenizer.from_file(str(TINY_CHAT / "tokenizer.json"))
    answer_format = FORMATS[name]
    if kind != "text":
        assert answer_format.call
        assert answer_format.tags
        markers = {*answer_format.tags, *MARKER.findall(answer_format.call.written.model_dump_json())}
        found.add_tokens([AddedToken(marker, special=kind == "special") for marker in sorted(markers)])
    return found


def grammars(name: str, kind: str) -> CallGrammar:
    answer_format = FORMATS[name]
    assert answer_format.call
    return CallGrammar(Lark(tokenizer(name, kind)), answer_format, answer_format.call)


@cache
def reader(name: str, kind: str) -> LLTokenizer:
    return LLTokenizer(tokenizer(name, kind).to_str(), eos_token=[END])


def takes(name: str, kind: str, grammar: str, text: str) -> bool:
    """Whether it is a whole answer."""
    words = reader(name, kind)
    matcher = LLMatcher(words, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = words.tokenize_str(text, parse_special=True)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


everywhere = pytest.mark.parametrize("name", sorted(FORMATS))
in_each_form = pytest.mark.parametrize("kind", ["text", "added", "special"])


@everywhere
@in_each_form
@pytest.mark.parametrize("parallel", [True, False])
def test_a_call_follows_the_schema(name: str, kind: str, parallel: bool) -> None:
    answer_format = FORMATS[name]
    grammar = grammars(name, kind).answer(FUNCTIONS, parallel=parallel, prefix="")
    assert takes(name, kind, grammar, calls(answer_format, ("get_weather", PARIS)))
    assert takes(name, kind, grammar, calls(answer_format, ("now", {})))
    for wrong in ({"days": 3}, {"city": "x", "days": "three"}, {"city": "x", "unit": "K"}, {"city": "x", "more": 1}):
        assert not takes(name, kind, grammar, calls(answer_format, ("get_weather", wrong))), wrong
    assert not takes(name, kind, grammar, calls(answer_format, ("get_time", {})))
    assert not takes(name, kind, grammar, "It rains.")
    assert not takes(name, kind, grammar, "")


@everywhere
@in_each_form
def test_several_calls_only_where_they_may_be(name: str, kind: str) -> None:
    two = calls(FORMATS[name], ("get_weather", {"city": "x"}), ("now", {}))
    for parallel in (True, False):
        grammar = grammars(name, kind).answer(FUNCTIONS, parallel=parallel, prefix="")
        assert takes(name, kind, grammar, two) is parallel


@everywhere
@in_each_form
def test_reasoning_comes_first_where_the_prompt_leaves_room_for_it(name: str, kind: str) -> None:
    answer_format = FORMATS[name]
    assert answer_format.tags
    opening, closing = answer_format.tags
    one = calls(answer_format, ("now", {}))
    thought = f"\nNow, then.\n{closing}\n\n{one}"
    expected = {
        "": (True, True, False),
        f"{opening}\n": (False, False, True),
        f"{opening}\n\n{closing}\n\n": (True, False, False),
    }
    for prefix, wanted in expected.items():
        grammar = grammars(name, kind).answer(FUNCTIONS, parallel=True, prefix=prefix)
        answers = (one, f"{opening}{thought}", thought)
        is_text = kind == "text" or (kind == "added" and not opening.startswith("<"))
        if is_text and prefix == f"{opening}\n":  # where a tag is text, a thought may hold one
            answers, wanted = (answers[0], answers[2]), (wanted[0], wanted[2])
        assert tuple(takes(name, kind, grammar, answer) for answer in answers) == wanted, prefix


@everywhere
@in_each_form
def test_a_call_that_the_model_has_begun_ends_where_it_ends(name: str, kind: str) -> None:
    syntax = FORMATS[name].call
    assert syntax
    writing = syntax.written
    whole = calls(FORMATS[name], ("get_weather", PARIS))
    marker = next((marker for marker in syntax.opens or () if marker in whole), "")
    begun = whole.partition(marker)[2] if marker else whole
    if marker not in writing.before_all or not marker:
        begun = begun.removesuffix(writing.after_all) if writing.after_all else begun
    words = reader(name, kind)
    matcher = LLMatcher(words, grammars(name, kind).opened(FUNCTIONS, parallel=False), log_level=0)
    tokens = words.tokenize_str(begun, parse_special=True)
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()
    assert matcher.is_stopped()


def test_a_schema_may_refer_to_its_definitions_in_xml_too() -> None:
    place = {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/place"}},
        "required": ["at"],
        "$defs": {"place": place},
    }
    grammar = grammars("qwen3_coder", "added").answer([Signature("go", schema)], parallel=False, prefix="")
    assert takes("qwen3_coder", "added", grammar, calls(FORMATS["qwen3_coder"], ("go", {"at": {"lat": 1.5}})))
    assert not takes("qwen3_coder", "added", grammar, calls(FORMATS["qwen3_coder"], ("go", {"at": {}})))


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder"])
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/city", "$defs": {"city": CITY}},
        {"anyOf": [CITY, {"type": "object", "properties": {"city": {"type": "string"}}}]},
        {"allOf": [CITY]},
        {"oneOf": [CITY]},
    ],
    ids=lambda schema: next(iter(schema)),
)
def test_a_schema_may_be_composed_of_others(name: str, schema: dict[str, object]) -> None:
    grammar = grammars(name, "added").answer([Signature("go", schema)], parallel=False, prefix="")
    assert takes(name, "added", grammar, calls(FORMATS[name], ("go", {"city": "Oslo"})))
    assert not takes(name, "added", grammar, calls(FORMATS[name], ("go", {"city": "Oslo"})) + "x")


@pytest.mark.parametrize("width", [1, 30])
def test_a_schema_that_is_composed_of_itself_is_read_in_no_time(width: int) -> None:
    itself, value = ([{"$ref": place} for _ in range(width)] for place in ("#", "#/properties/x"))
    deep = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"} for _ in range(width)]} for i in range(9)}
    whole = {
        "properties": {"x": {"anyOf": value}, "y": {"$ref": "#/$defs/d0"}},
        "anyOf": itself,
        "allOf": itself,
        "$defs": {**deep, "d9": {"type": ["string", "null"]}},
    }
    begin = time.process_time()
    found, _ = parameters(whole)
    assert time.process_time() - begin < 1
    assert [*found] == ["x", "y"]
    assert "type" not in found["x"]
    assert found["y"]["type"] == ["string", "null"]


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"type": "string"}, ["Oslo", "5", "null", ""]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["Oslo", None]),
        ({"type": ["string", "null"]}, ["北京", None]),
        ({"type": ["integer", "null"]}, [5, None]),
        ({"enum": ["C", None]}, ["C", None]),
        ({"enum": [1, 2.5, "x", True]}, [1, 2.5, "x", True]),
        ({"const": 7}, [7]),
        ({}, ["Oslo"]),
        ({"$ref": "#/$defs/unit"}, ["C"]),
        ({"allOf": [{"$ref": "#/$defs/unit"}]}, ["F"]),
        ({"$ref": "#/$defs/days"}, [3]),
        ({"type": "string", "pattern": r"^\d+\$"}, ["5$"]),
        ({"type": "string", "pattern": r"\\$"}, ["a\\"]),
        ({"type": "array", "items": {"type": "string"}}, [["a", "b"]]),
        ({"type": "object"}, [{"a": [1]}]),
    ],
    ids=str,
)
def test_an_argument_without_quotes_is_read_as_it_was_allowed(schema: dict[str, object], values: list[object]) -> None:
    defs = {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}}
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": defs}
    grammar = grammars("qwen3_coder", "added").answer([Signature("f", whole)], parallel=False, prefix="")
    for value in values:
        text = calls(FORMATS["qwen3_coder"], ("f", {"x": value}))
        assert takes("qwen3_coder", "added", grammar, text), value
        recorded = Recorded("qwen3_coder", text, tools=(as_read("f", whole),))
        [(name, arguments)] = read(recorded, [text]).calls
        assert (name, json.loads(arguments)) == ("f", {"x": value})


@pytest.mark.parametrize(
    ("limit", "good", "bad"),
    [
        ({"maxLength": 3}, ["", "abc", "北京市"], ["abcd"]),
        ({"minLength": 2}, ["ab", "a\nb" * 9], ["a"]),
        ({"pattern": r"^\d{2}/\d$"}, ["12/3"], ["12", "112/3", "12/34"]),
        ({"pattern": "b+"}, ["b", "abc"], ["", "ac"]),
        ({"const": "x"}, ["x"], ["y", ""]),
    ],
)
def test_limits_of_a_text_hold_where_it_is_written_without_quotes(
    limit: dict[str, object], good: list[str], bad: list[str]
) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", **limit}}, "required": ["x"]}
    grammar = grammars("qwen3_coder", "text").answer([Signature("f", schema)], parallel=False, prefix="")

    def is_taken(value: str) -> bool:
        return takes("qwen3_coder", "text", grammar, calls(FORMATS["qwen3_coder"], ("f", {"x": value})))

    assert [value for value in (*good, *bad) if is_taken(value)] == good


@pytest.mark.parametrize(
    "unknown", [{"type": "array", "uniqueItems": True}, {"oneOf": [{"type": "number"}, {"type": "integer"}]}]
)
def test_what_the_library_does_not_know_is_an_error_only_where_a_tool_is_strict(unknown: dict[str, object]) -> None:
    schema = {"type": "object", "properties": {"x": unknown}}
    words = reader("hermes", "text")
    for strict in (True, False):
        grammar = grammars("hermes", "text").answer([Signature("f", schema, strict)], parallel=False, prefix="")
        assert LLMatcher(words, grammar, log_level=0).is_error() is strict


def test_reasoning_stands_before_any_other_grammar() -> None:
    pieces, hermes = Lark(tokenizer("hermes", "added")), FORMATS["hermes"]
    yes_or_no = lark('start: "yes" | "no"')
    grammar = pieces.behind_reasoning(yes_or_no, hermes, "")
    assert takes("hermes", "added", grammar, "<think>\nHm.\n</think>\n\nyes")
    assert takes("hermes", "added", grammar, "no")
    assert not takes("hermes", "added", grammar, "<think>\nHm.\n</think>\n\nperhaps")
    assert pieces.behind_reasoning(yes_or_no, hermes, "<think>\n\n</think>\n\n") == yes_or_no
    assert pieces.behind_reasoning(yes_or_no, None, "") == yes_or_no


def test_calls_may_stand_in_place_of_another_answer() -> None:
    calls_ = grammars("hermes", "added").calls(FUNCTIONS, parallel=False)
    pieces, hermes = Lark(tokenizer("hermes", "added")), FORMATS["hermes"]
    grammar = pieces.behind_reasoning(lark('start: "yes"'), hermes, "", instead=calls_)
    assert takes("hermes", "added", grammar, "yes")
    assert takes("hermes", "added", grammar, "<think>Hm.</think>" + calls(hermes, ("now", {})))
    assert not takes("hermes", "added", grammar, "yes" + calls(hermes, ("now", {})))
