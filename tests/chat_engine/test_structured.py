"""`structured_outputs` as it arrives: its forms, its limits, and what cannot be followed."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from chat_engine.answering import grammar as grammar_module
from chat_engine.answering.grammar import Grammars, explained
from chat_engine.answering.grammar_trial import GrammarTrial, TrialSetup, TrialUnavailableError
from chat_engine.errors import InvalidArgumentError, OverloadedError
from chat_engine.reading.structured import lark
from chat_engine.request import Constraint, StructuredOutputs
from tests.chat_engine.builders import EOS, hand_engine, letter_tokenizer, make_config
from tests.chat_engine.guided import VOCAB, constraint, grammars, guided_request, tokenizer
from tests.chat_engine.test_parse import make_parser, parse, refused

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def outputs_of(given: object) -> StructuredOutputs | None:
    return parse(sampling_parameters={"structured_outputs": given}).sampling.structured_outputs


# Forms.


def test_nothing_is_asked_for_by_default() -> None:
    assert parse().constraint is None
    assert outputs_of(None) is None


@pytest.mark.parametrize("given", [PERSON, json.dumps(PERSON)])
def test_a_schema_comes_as_an_object_or_as_text(given: object) -> None:
    assert outputs_of({"json": given}) == StructuredOutputs(json=PERSON)


def test_json_true_is_any_object() -> None:
    assert outputs_of({"json": "true"}) == outputs_of({"json": True}) == StructuredOutputs(json=True)
    wanted = json.loads(constraint(json=True).grammar)["grammars"][0]["json_schema"]
    assert wanted["type"] == "object"


def test_choices_come_as_a_list() -> None:
    assert outputs_of({"choice": ["a", "中"]}) == StructuredOutputs(choice=("a", "中"))


def test_nulls_are_not_given() -> None:
    assert outputs_of({"json": None, "regex": "a", "choice": None}) == StructuredOutputs(regex="a")


def test_it_may_come_as_a_scalar_parameter_of_generate() -> None:
    request = parse(parameters={"structured_outputs": json.dumps({"choice": ["a", "b"]})})
    assert request.constraint is not None
    assert request.constraint.field == "structured_outputs.choice"


def test_a_callers_options_of_the_library_do_not_loosen_the_json() -> None:
    loose = {**PERSON, "x-guidance": {"item_separator": ";", "lenient": True}}
    assert constraint(json=loose).grammar == constraint(json=PERSON).grammar


# Limits, and what is no such thing.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "structured_outputs: exactly one of json, regex, choice and grammar is required, none given"),
        ({"json": {}, "regex": "a"}, "json and regex given"),
        (
            {"xml": "a"},
            "structured_outputs.xml: unknown parameter (value 'a'); allowed are json, regex, choice, grammar",
        ),
        ("[1]", "structured_outputs: must be an object"),
        ("{", "structured_outputs: not JSON"),
        ({"json": "{"}, "structured_outputs.json: not JSON"),
        ({"json": False}, "structured_outputs.json: must be a JSON schema as an object, or true (got False)"),
        ({"json": [1]}, "structured_outputs.json: must be a JSON schema"),
        ({"json": 5}, "structured_outputs.json: must be a JSON schema"),
        ({"json": {"const": float("nan")}}, "structured_outputs.json: holds a number that JSON does not have"),
        ({"regex": 5}, "structured_outputs.regex: must be a valid string"),
        ({"regex": ""}, "structured_outputs.regex: "),
        ({"regex": "\ud800"}, "structured_outputs.regex: must be a valid string"),
        ({"choice": []}, "structured_outputs.choice: "),
        ({"choice": ["a", 5]}, "structured_outputs.choice[1]: must be a valid string (got 5)"),
        ({"choice": "ab"}, "structured_outputs.choice: must be a valid list"),
        ({"choice": ["\ud800"]}, "structured_outputs.choice"),
        ({"json": {"const": "\ud800"}}, "structured_outputs.json: holds half a surrogate pair"),
        ({"grammar": "\0"}, "structured_outputs.grammar: holds a NUL"),
    ],
)
def test_what_is_no_such_thing_is_refused_by_its_field(given: object, words: str) -> None:
    assert words in refused(sampling_parameters={"structured_outputs": given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"json": {"const": "中" * 40}}, "structured_outputs.json: 133 bytes given; at most 100 are allowed"),
        ({"regex": "中" * 34}, "structured_outputs.regex: 102 bytes given; at most 100 are allowed"),
        ({"grammar": "x" * 101}, "structured_outputs.grammar: 101 bytes given; at most 100 are allowed"),
        ({"choice": ["x" * 60, "y" * 41]}, "structured_outputs.choice: 101 bytes given; at most 100 are allowed"),
        ({"choice": ["a"] * 4}, "structured_outputs.choice: 4 choices given; at most 3 are allowed"),
    ],
)
def test_each_has_a_largest_size(given: object, words: str) -> None:
    parser = make_parser(max_grammar_bytes=100, max_choices=3)
    assert refused(parser, sampling_parameters={"structured_outputs": given}) == words
    parse(parser, sampling_parameters={"structured_outputs": {"choice": ["x" * 50, "y" * 50, ""]}})


@pytest.mark.parametrize("depth", [200, 900, 100_000])
@pytest.mark.parametrize("more", ["", ', "regex": "a"'])
def test_a_schema_nested_too_deeply_is_refused(depth: int, more: str) -> None:
    deep = '{"items":' * depth + "{}" + "}" * depth
    raw = f'{{"structured_outputs": {{"json": {deep}{more}}}}}'.encode()
    with pytest.raises(InvalidArgumentError):
        compiled(parse(make_parser(max_prompt_bytes=1 << 21), sampling_parameters=raw).constraint)


# What cannot be followed.


def compiled(wanted: Constraint | None) -> None:
    assert wanted is not None
    grammars().compile(wanted)


def sentence(**outputs: object) -> str:
    field = f"structured_outputs.{next(iter(outputs))}"
    with pytest.raises(InvalidArgumentError) as caught:
        compiled(constraint(**outputs))
    assert caught.value.field == field
    said = caught.value.sentence
    assert 0 < len(said) < 400
    for internal in ("<state>", "non-verbose", "registry", "limits.", "coerce", "\n", "x-guidance", "Parser", "⟦"):
        assert internal not in said
    return said


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"properties": {"a": {"type": 5}}}, "type must be a string or array of strings"),
        ({"properties": []}, "properties must be an object"),
        ({"enum": 5}, "enum must be an array"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"required": "a"}, "Expected array for 'required'"),
        ({"type": "string", "minLength": -1}, "Expected positive integer for 'minLength'"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"oneOf": [{"type": "string"}, {"minLength": 2, "type": "string"}]}, "oneOf is supported only where"),
        ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
        ({"$ref": "http://example.com/x"}, "put it under $defs"),
        ({"$ref": "#"}, "no answer can follow it"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
    ],
)
def test_a_schema_that_is_none_says_what_is_wrong(schema: dict[str, object], words: str) -> None:
    assert words in sentence(json=schema)


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        ("(", "unclosed group"),
        ("a(?=b)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"a\b", "look-around"),
        (r"(a)\1", "backreferences are not supported"),
        (r"\d{2,1}", "invalid repetition count range"),
        ("(" * 5000 + "a" + ")" * 5000, ""),
        ("a" + "*" * 50_000, ""),
    ],
)
def test_a_regex_that_is_none_or_explodes_says_what_is_wrong(regex: str, words: str) -> None:
    assert words in sentence(regex=regex)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "Expected"),
        ('a: "b"', "no start rule found"),
        ("start: foo", 'unknown name: "foo"'),
        ("start: <nope>", 'unknown special token: "<nope>"'),
        ("start: <[5000]>", "Token range end too large: 5000"),
        ("start: a\na: /(/", "line 2: unclosed group"),
        ('start: %json {"type": "strin"}', "Invalid type: strin"),
        ("start: " + "(" * 5000 + '"a"' + ")" * 5000, "too complex"),
    ],
)
def test_a_grammar_that_is_none_says_what_is_wrong(text: str, words: str) -> None:
    assert words in sentence(grammar=text)


def many(count: int) -> dict[str, object]:
    return {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(count)}}


def test_a_huge_schema_is_too_complex() -> None:
    assert "too complex" in sentence(json=many(4000))
    compiled(constraint(json=many(300)))
    compiled(constraint(json={"enum": [f"value {i}" for i in range(3000)]}))


def test_the_size_of_a_compiled_grammar_is_a_setting() -> None:
    small = Grammars(tokenizer(), VOCAB, frozenset({EOS}), make_config(max_grammar_symbols=20))
    try:
        with pytest.raises(InvalidArgumentError, match="too complex"):
            small.compile(constraint(json=many(30)))
        small.compile(constraint(choice=["a"]))
    finally:
        small.close()


# The trial.

ENDLESS = {"anyOf": [{"type": "integer", "multipleOf": 99991 + 2 * i} for i in range(3)]}
CHAIN = "start: A0\n" + "".join(f"A{i}: A{i + 1}\n" for i in range(6000)) + 'A6000: "x"'


@pytest.fixture
def impatient() -> Iterator[Grammars]:
    made = Grammars(tokenizer(), VOCAB, frozenset({EOS}), make_config(grammar_seconds=0.5))
    yield made
    made.close()


@pytest.mark.parametrize("outputs", [{"json": ENDLESS}, {"grammar": CHAIN}])
def test_what_takes_for_ever_or_overflows_the_stack_is_refused_and_the_next_goes_on(
    impatient: Grammars, outputs: dict[str, object]
) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidArgumentError, match="too complex"):
        impatient.compile(constraint(**outputs))
    assert time.monotonic() - begin < 15
    impatient.compile(constraint(choice=["a"]))


def test_what_was_refused_is_not_tried_again(impatient: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError) as first:
        impatient.compile(constraint(json=ENDLESS))
    monkeypatch.setattr(GrammarTrial, "survives", lambda self, grammar: pytest.fail("tried again"))
    with pytest.raises(InvalidArgumentError) as second:
        impatient.compile(constraint(json=ENDLESS))
    assert str(first.value) == str(second.value)


def test_a_process_that_cannot_work_is_no_fault_of_the_grammar(
    impatient: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: GrammarTrial, grammar: str) -> bool:
        raise TrialUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(GrammarTrial, "survives", broken)
        with pytest.raises(OverloadedError, match="at the moment"):
            impatient.compile(constraint(choice=["a"]))
    impatient.compile(constraint(choice=["a"]))  # it is not held against it


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGALRM])
def test_a_process_that_others_ended_is_replaced_and_no_fault_of_the_grammar(by: signal.Signals) -> None:
    """By the kernel, for memory, or because the machine left it no time: the grammar is not refused for that."""
    trial = GrammarTrial(TrialSetup(VOCAB, (EOS,), {EOS: "</s>"}, {}, 20.0))
    try:
        assert trial.survives(lark('start: "a"'))
        trial._process.send_signal(by)
        trial._process.wait()
        with pytest.raises(TrialUnavailableError):
            trial.survives(lark('start: "a"'))
        assert trial.survives(lark('start: "a"'))
    finally:
        trial.close()


def test_closed_it_tries_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    trial = GrammarTrial(TrialSetup(VOCAB, (EOS,), {}, {}, 20.0))
    process = trial._process
    trial.close()
    assert process.returncode is not None
    assert capfd.readouterr().err == ""
    with pytest.raises(TrialUnavailableError):
        trial.survives(lark('start: "a"'))


def test_the_process_ends_with_its_parents_end_of_the_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    trial = GrammarTrial(TrialSetup(VOCAB, (EOS,), {}, {}, 20.0))
    trial._process.stdin.close()  # as when the parent is killed
    assert trial._process.wait(20) == 0
    assert capfd.readouterr().err == ""
    trial._process.stdout.close()


def test_the_trial_refuses_no_special_token_of_the_model() -> None:
    trial = GrammarTrial(TrialSetup(VOCAB, (EOS,), {EOS: "</s>", 298: "<tool_call>"}, {}, 20.0))
    try:
        assert trial.survives(lark("start: <tool_call> <[298]>"))
    finally:
        trial.close()


# The cache.


def test_a_grammar_is_compiled_once_and_those_used_last_are_kept(
    impatient: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    monkeypatch.setattr(GrammarTrial, "survives", lambda self, grammar: tried.append(grammar) or True)
    monkeypatch.setattr(grammar_module, "_KEPT", 2)
    a, b, c = (constraint(choice=[name]) for name in "abc")
    for wanted in (a, a, b, a, c, a):
        impatient.compile(wanted)
    assert tried == [a.grammar, b.grammar, c.grammar]
    impatient.compile(b)
    assert len(tried) == 4


def test_a_grammar_known_from_one_field_is_refused_by_the_name_of_the_other() -> None:
    wrong = lark("start: foo")
    for field in ("structured_outputs.grammar", "tool_choice"):
        with pytest.raises(InvalidArgumentError) as caught:
            grammars().compile(Constraint(wrong, field))
        assert caught.value.field == field


# Models that cannot be constrained.


def test_a_tokenizer_that_the_library_cannot_read_refuses_the_request_and_loads() -> None:
    none = Grammars(letter_tokenizer(), 128, frozenset({EOS}), make_config())
    with pytest.raises(InvalidArgumentError, match="tokenizer is of a kind") as caught:
        none.compile(constraint(regex="a"))
    assert caught.value.field == "structured_outputs.regex"
    none.close()


def test_a_model_without_an_end_token_refuses_the_request() -> None:
    with pytest.raises(InvalidArgumentError, match="not possible with this model"):
        Grammars(tokenizer(), VOCAB, frozenset(), make_config()).compile(constraint(regex="a"))


def test_an_engine_without_grammars_refuses_the_request() -> None:
    from tests.chat_engine.guided import RandomRunner

    engine = hand_engine(RandomRunner(), tokenizer())
    with pytest.raises(InvalidArgumentError, match="not possible with this model"):
        engine.submit(guided_request("r", {"regex": "a"}), lambda event: None)
    assert not engine.step()


# Sentences.


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ('at 1(8): unknown name: "foo"\n   1 | start: foo\n              ^\n', 'unknown name: "foo"'),
        ("lexer error: too many expressions constructed\n<non-verbose/>", "too complex to be followed"),
        ("x" * 5000, "x" * 300 + "..."),
    ],
)
def test_errors_of_the_library_become_one_line(error: str, words: str) -> None:
    assert explained(error).startswith(words)
    assert "\n" not in explained(error)
