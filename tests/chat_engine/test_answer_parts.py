"""Content, reasoning and calls out of the text of an answer: each family's syntax, however it is cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_parsing import parse_response

from chat_engine.request import Reply
from chat_engine.text.answer_formats import known_formats
from chat_engine.text.answer_parts import AnswerParts
from tests.chat_engine.answers import (
    LLAMA,
    UNUSUAL,
    WELL_FORMED,
    Recorded,
    equal_calls,
    joined,
    read,
    reply_of,
    wanted,
)
from tests.chat_engine.builders import examples

ALL = [*WELL_FORMED, *UNUSUAL]
BITS = sorted({part for one in ALL for part in (one.text[:9], one.text[-9:], one.text[5:17], *' \n{}"<')})


@pytest.mark.parametrize("recorded", ALL, ids=str)
def test_whole(recorded: Recorded) -> None:
    assert read(recorded, [recorded.text]) == wanted(recorded)


@pytest.mark.parametrize("recorded", ALL, ids=str)
def test_cut_anywhere(recorded: Recorded) -> None:
    """At each place, into single characters, and at random places."""
    text, right = recorded.text, wanted(recorded)
    for place in range(len(text)):
        assert read(recorded, [text[:place], text[place:]]) == right, text[:place]
    assert read(recorded, text) == right
    rng = random.Random(0)
    for _ in range(20):
        places = sorted(rng.sample(range(len(text)), min(5, len(text) - 1)))
        bounds = zip([0, *places], [*places, len(text)], strict=True)
        assert read(recorded, [text[a:b] for a, b in bounds]) == right


@pytest.mark.parametrize("recorded", WELL_FORMED, ids=str)
def test_the_formats_are_templates_of_transformers(recorded: Recorded) -> None:
    """Its own parser reads the same out of a whole, well-formed answer."""
    template = known_formats()[recorded.family].template
    message = parse_response(recorded.text, template, prefix="", tools=list(recorded.tools))
    assert message.get("content", "") == recorded.content
    assert message.get("reasoning_content", "") == recorded.reasoning
    assert equal_calls(recorded.calls, message)


@pytest.mark.parametrize("family", sorted(known_formats()))
@given(data=st.data())
@examples(60)
def test_nothing_is_lost_and_cuts_do_not_matter(family: str, data: st.DataObject) -> None:
    """Any bits of syntax in any order: the same message whole and in characters, and no word lost."""
    bits = data.draw(st.lists(st.sampled_from(BITS), max_size=8))
    recorded = Recorded(family, "".join(bits))
    whole = read(recorded, [recorded.text])
    assert read(recorded, recorded.text) == whole
    if not (whole.calls or whole.reasoning) and not any(
        tag in recorded.text for tag in known_formats()[family].tags or ()
    ):
        assert whole.content.split() == recorded.text.split()


def test_arguments_are_streamed() -> None:
    """A call's name is told when it is complete, its arguments as they are written; XML is cast when it is there."""
    for recorded in WELL_FORMED:
        if not recorded.calls:
            continue
        parts = AnswerParts(reply_of(recorded))
        told = [delta for char in recorded.text for part in parts.feed(char) for delta in part.calls]
        first = [delta for delta in told if delta.index == 0]
        assert first[0].name == "get_weather"
        streams = recorded.family != "qwen3_coder"
        assert len(first) > 10 if streams else len(first) == 2
    parts = AnswerParts(reply_of(Recorded("llama3", LLAMA)))
    told = [delta for part in parts.feed(LLAMA[: LLAMA.index(",")]) for delta in part.calls]
    assert joined(told) == (("get_weather", ""),)


def test_text_is_not_held_back_for_nothing() -> None:
    parts = AnswerParts(reply_of(Recorded("hermes", "")))
    shown = ["".join(part.text for part in parts.feed(piece)) for piece in ("Hel", "lo ", "<", "b>\n", "x")]
    assert shown == ["Hel", "lo", "", " <b>", "\nx"]


def test_call_ids_differ() -> None:
    parts = AnswerParts(reply_of(WELL_FORMED[1]))
    ids = [delta.id for part in parts.feed(WELL_FORMED[1].text) for delta in part.calls if delta.id]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("hermes", '<tool_call>{"x": %s, "name": "now"}</tool_call>'),
        ("llama3", '{"name": "now", "x": %s, "parameters": {}}'),
        ("mistral_list", '[TOOL_CALLS] [{"x": %s, "name": "now"}]'),
        ("qwen3_coder", "<tool_call><function=now>\n<parameter=x>\n%s\n</parameter>\n</function></tool_call>"),
    ],
)
def test_nesting_that_nobody_can_read_raises_nothing(family: str, written: str) -> None:
    """A caller can make the model write it."""
    array = {"type": "function", "function": {"name": "now", "parameters": {"properties": {"x": {"type": "array"}}}}}
    parts = AnswerParts(Reply(known_formats()[family], (array,)))
    deep = "[" * 20_000 + "]" * 20_000
    found = [*parts.feed(written % deep), *parts.finish()]
    assert any(part.calls or part.text for part in found)
