from __future__ import annotations

import json

import pytest

from chat_page.documents import NotUsableError, pretty, schema_of, tools_of
from chat_page.examples import tool_example


@pytest.mark.parametrize("locale", [None, "en-US", "zh-CN"])
def test_the_example_can_be_sent(locale: str | None) -> None:
    (tool,) = tools_of(tool_example(locale))
    assert tool["function"]["name"] == "get_weather"
    assert ("天气" in tool_example(locale)) == (locale == "zh-CN")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_nothing_is_nothing(text: str) -> None:
    assert tools_of(text) == ()
    assert schema_of(text) is None


def test_one_tool_needs_no_list() -> None:
    assert tools_of('{"type": "function"}') == ({"type": "function"},)
    assert schema_of('{"type": "object"}') == {"type": "object"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{]", "is not JSON at line 1, column 3"),
        ("[1]", "must be a JSON "),
        ("3", "must be a JSON "),
        ("[NaN]", "is not JSON that can be sent"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_cannot_be_sent_is_a_sentence(text: str, words: str) -> None:
    for read in (tools_of, schema_of):
        with pytest.raises(NotUsableError, match=words):
            read(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"a":[1,"北"]}', '{\n  "a": [\n    1,\n    "北"\n  ]\n}'),
        (" [1]", "[\n  1\n]"),
        ("{", None),
        ("[link](https://example.com)", None),
        ("3", None),
        ("", None),
        ("[NaN]", None),
        ("[" * 100_000, None),
        ('{"a":[1.10,1e5]}', '{\n  "a": [\n    1.1,\n    100000.0\n  ]\n}'),
        (r'{"a":"\ud83d\ude00"}', '{\n  "a": "😀"\n}'),
        (r'{"a":"\ud800"}', None),
        ('{"a":1,"a":2}', None),
        ("[1e400]", None),
        ("[1e-99999999999999999999]", None),
        ("[1.00000000000000000001]", None),
        ("[" + "9" * 5000 + "]", None),
    ],
)
def test_json_is_indented_and_all_else_left_alone(text: str, shown: str | None) -> None:
    assert pretty(text) == shown
    if shown is not None:
        assert json.loads(shown) == json.loads(text)
