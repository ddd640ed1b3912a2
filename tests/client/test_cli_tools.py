"""`ask` with tools, reasoning and structured output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.commands import Terminal, run
from tests.client.fake_server import FakeTriton, Received, say, say_calls
from triton_chat.cli import terminal
from triton_chat.types import ToolCall

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
THINKS = [say("", reasoning_output="Paris is "), say("", reasoning_output="in France."), say("France", "stop", 5)]


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([TOOL]))
    return str(path)


def chat_parameters(received: Received) -> Any:
    return json.loads(received.tensor("chat_parameters")[0])


def structured_outputs(received: Received) -> Any:
    return json.loads(received.tensor("sampling_parameters")[0])["structured_outputs"]


def test_what_is_about_the_messages_arrives(fake: FakeTriton, tools: str) -> None:
    flags = f"--tools {tools} --tool-choice required --no-parallel-tool-calls".split()
    kwargs = ["--template-kwarg", "enable_thinking=false", "--template-kwarg", "style=kurz und gut"]
    assert run(fake.url, "ask", "x", *flags, *kwargs).returncode == 0
    assert chat_parameters(fake.next_request()) == {
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": False, "style": "kurz und gut"},
    }


def test_a_tool_is_chosen_by_its_name(fake: FakeTriton, tools: str) -> None:
    assert run(fake.url, "ask", "x", "--tools", tools, "--tool-choice", "get_weather").returncode == 0
    choice = chat_parameters(fake.next_request())["tool_choice"]
    assert choice == {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("command", ["ask", "complete"])
def test_what_the_answer_must_be(fake: FakeTriton, tmp_path: Path, command: str) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "grammar.lark").write_text('start: "好"', encoding="utf-8")
    cases = {
        ("--json-schema", str(tmp_path / "schema.json")): {"json": {"type": "object"}},
        ("--regex", "[0-9]+"): {"regex": "[0-9]+"},
        ("--choice", "yes", "--choice", "不"): {"choice": ["yes", "不"]},
        ("--grammar", str(tmp_path / "grammar.lark")): {"grammar": 'start: "好"'},
        ("--structured-outputs", '{"json": true}'): {"json": True},
    }
    for flags, expected in cases.items():
        assert run(fake.url, command, "x", *flags).returncode == 0
        assert structured_outputs(fake.next_request()) == expected


def test_reasoning_is_not_part_of_the_output(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter(THINKS)
    done = run(fake.url, "ask", "x")
    assert (done.stdout, done.stderr) == (b"France\n", b"Paris is in France.\n")
    hidden = run(fake.url, "ask", "x", "--no-reasoning")
    assert (hidden.stdout, hidden.stderr) == (b"France\n", b"")


@pytest.mark.parametrize(("environment", "dimmed"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_reasoning_is_dimmed_on_a_terminal(fake: FakeTriton, environment: dict[str, str], dimmed: bool) -> None:
    fake.reply = lambda _: iter(THINKS)
    screen = Terminal(fake.url, "ask", "x", **({"TERM": "xterm"} | environment))
    try:
        screen.expect("France.")
        screen.expect("France")
        assert screen.wait() == 0
        assert (b"\x1b[2mParis is \x1b[0m" in screen.output) == dimmed
        assert (b"\x1b" in screen.output) == dimmed
    finally:
        screen.close()


def test_reasoning_that_is_cut_ends_its_line(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("", reasoning_output="hm"), say("", "length", 2)])
    done = run(fake.url, "ask", "x", "--stats")
    assert done.stdout == b""
    assert done.stderr.startswith(b"hm\n[2 tokens in")


def test_calls_are_lines_of_the_output(fake: FakeTriton, tools: str) -> None:
    arguments = '{"city": "北京", "days": 2, "more": {"a": [true]}}'
    calls = say_calls(("1", "get_weather", arguments), ("2", "get_weather", "{}"))
    fake.reply = lambda _: iter([say("I look."), *calls])
    done = run(fake.url, "ask", "x", "--tools", tools)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == [
        "I look.",
        'get_weather(city="北京", days=2, more={"a": [true]})',
        "get_weather()",
    ]


def test_json_has_all_of_it(fake: FakeTriton, tools: str) -> None:
    fake.reply = lambda _: iter(
        [say("", reasoning_output="Hm."), *say_calls(("1", "get_weather", '{"city": "Paris"}'))]
    )
    document = json.loads(run(fake.url, "ask", "x", "--tools", tools, "--json").stdout)
    assert document["reasoning"] == "Hm."
    assert document["tool_calls"] == [{"id": "1", "name": "get_weather", "arguments": '{"city": "Paris"}'}]
    assert document["finish_reason"] == "tool_calls"


def test_stats_tell_of_reasoning(fake: FakeTriton) -> None:
    def reply(_: Received) -> Iterator[Any]:
        last = say("France", "stop", 5)
        last.infer_response.outputs.add(name="num_reasoning_tokens", datatype="INT32", shape=[1, 1])
        last.infer_response.raw_output_contents.append((4).to_bytes(4, "little"))
        yield last

    fake.reply = reply
    assert "5 tokens, 4 of them reasoning, in" in run(fake.url, "ask", "x", "--stats").stderr.decode()


@pytest.mark.parametrize(
    ("name", "text", "flags", "part"),
    [
        (None, "", ("--tools", "{file}"), "--tools: cannot read"),
        ("tools.json", "[{]", ("--tools", "{file}"), "tools.json is not JSON at line 1, column 3"),
        ("tools.json", '{"name": "f"}', ("--tools", "{file}"), "must be a JSON list of tools such as"),
        ("tools.json", "[" * 100_000, ("--tools", "{file}"), "tools.json"),
        ("schema.json", "{", ("--json-schema", "{file}"), "--json-schema: "),
        ("g.lark", b"\xff", ("--grammar", "{file}"), "g.lark is not UTF-8 text"),
        (None, "", ("--regex", "a", "--choice", "b"), "give one of --regex and --choice"),
        (None, "", ("--regex", "a", "--structured-outputs", '{"json": true}'), "--regex and --structured-outputs"),
        (None, "", ("--template-kwarg", "thinking"), "NAME=VALUE"),
        (
            None,
            "",
            ("--template-kwarg", "thinking=False"),
            "write thinking=false, or thinking='\"False\"' for the text",
        ),
        (None, "", ("--template-kwarg", "a=" + "[" * 100_000), "--template-kwarg: a is nested too deeply"),
        (None, "", ("--template-kwarg", "a=1", "--template-kwarg", "a=2"), "--template-kwarg gives a twice"),
        ("tools.json", "[" + "9" * 5000 + "]", ("--tools", "{file}"), "has a number of too many digits"),
        ("schema.json", "9" * 5000, ("--json-schema", "{file}"), "has a number of too many digits"),
        (None, "", ("--structured-outputs", "[]"), "takes a JSON object"),
        (None, "", ("--structured-outputs", "[" * 100_000), "--structured-outputs is nested too deeply"),
    ],
)
def test_wrong_use_is_2_and_says_what_to_do(
    fake: FakeTriton, tmp_path: Path, name: str | None, text: str | bytes, flags: tuple[str, ...], part: str
) -> None:
    path = tmp_path / (name or "none")
    if name:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run(fake.url, "ask", "x", *(flag.format(file=path) if flag == "{file}" else flag for flag in flags))
    assert (done.returncode, done.stdout) == (2, b"")
    assert part in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert fake.requests == []


def test_a_raw_prompt_has_no_tools(fake: FakeTriton, tools: str) -> None:
    assert run(fake.url, "complete", "x", "--tools", tools).returncode == 2


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (ToolCall("1", "f", '{"a": "x\\u001b[2J\\u202e"}'), 'f(a="x\\u001b[2J\\u202e")'),
        (ToolCall("1", "f\x1b", "{}"), "f\\x1b()"),
        (ToolCall("1", "f", '{"a": "b'), 'f({"a": "b [cut]'),
    ],
)
def test_a_call_shows_what_a_terminal_would_obey(call: ToolCall, line: str) -> None:
    assert terminal.call_line(call, cut=True) == line


def test_a_call_that_was_not_cut_does_not_say_so(fake: FakeTriton, tools: str) -> None:
    fake.reply = lambda _: iter(say_calls(("1", "get_weather", '{"x": }')))
    assert run(fake.url, "ask", "x", "--tools", tools).stdout == b'get_weather({"x": })\n'
    fake.reply = lambda _: iter(say_calls(("1", "get_weather", '{"x": '), finish="length"))
    assert run(fake.url, "ask", "x", "--tools", tools).stdout == b'get_weather({"x":  [cut]\n'


CONTROLS = "a\x1b]52;c;eA==\x07\x1b[2J\x9b2J\x7f\r\tb\nc"
SHOWN = r"a\x1b]52;c;eA==\x07\x1b[2J\x9b2J\x7f\r"


def test_a_terminal_shows_control_characters_and_does_not_obey_them(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("", reasoning_output=CONTROLS), say(CONTROLS, "stop", 2)])
    screen = Terminal(fake.url, "ask", "x")
    try:
        for _ in range(2):
            screen.expect(SHOWN)
            screen.expect("b\r\nc")
        assert screen.wait() == 0
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", screen.output.decode())
    finally:
        screen.close()


def test_a_pipe_gets_control_characters(fake: FakeTriton) -> None:
    fake.reply = lambda _: iter([say("", reasoning_output=CONTROLS), say(CONTROLS, "stop", 2)])
    done = run(fake.url, "ask", "x")
    assert done.stdout == done.stderr == f"{CONTROLS}\n".encode()
