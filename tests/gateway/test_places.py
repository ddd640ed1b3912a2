from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_gateway.places import in_input, renamed, split
from triton_chat.errors import ContextLengthError, InvalidRequestError

names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)
parts = st.lists(st.one_of(st.integers(0, 999), names), max_size=4)
rests = st.text(st.characters(codec="utf-8"))


def dotted(name: str, path: list[int | str]) -> str:
    return ".".join([name, *map(str, path)])


def openais(name: str, path: list[int | str]) -> str:
    return name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


@given(names, parts, rests)
def test_a_place_is_written_as_openai_does(name: str, path: list[int | str], rest: str) -> None:
    place = openais(name, path)
    for written in (dotted(name, path), place):
        assert split(f"{written}: {rest}") == (place, f"{place}: {rest}")


@pytest.mark.parametrize(
    "sentence",
    [
        "the prompt has 9 tokens",
        "",
        "messages, text_input: exactly one",
        ": x",
        "[0]: x",
        "stop: ",
        "a b: c",
        "row 1: x",
        "TypeError: x",
        "internal error: x",
        "failed: x",
    ],
)
def test_what_is_no_place_stays(sentence: str) -> None:
    place, said = split(sentence)
    assert said == sentence
    assert place == ("stop" if sentence == "stop: " else None)


@given(names, parts, rests)
def test_a_field_gets_its_callers_name_and_keeps_its_kind(name: str, path: list[int | str], rest: str) -> None:
    told = renamed(ContextLengthError(f"{dotted(name, path)}: {rest}"), {name: "prompt[1]"})
    assert type(told) is ContextLengthError
    assert split(str(told)) == (openais("prompt[1]", path), f"{openais('prompt[1]', path)}: {rest}")
    assert str(renamed(InvalidRequestError(f"{name}: {rest}"), {})) == f"{name}: {rest}"


@pytest.mark.parametrize(
    ("told", "of_a_list", "of_one"),
    [
        ("row 7: text: x: y", "input[7]: x: y", "input: x: y"),
        ("row 0: x", "input[0]: x", "input: x"),
        ("token_ids: x", "input[0]: x", "input: x"),
        ("text, token_ids: both", "text, token_ids: both", "text, token_ids: both"),
        ("dimensions: x", "dimensions: x", "dimensions: x"),
    ],
)
def test_rows_are_inputs(told: str, of_a_list: str, of_one: str) -> None:
    assert str(in_input(InvalidRequestError(told), is_list=True)) == of_a_list
    assert str(in_input(InvalidRequestError(told), is_list=False)) == of_one
