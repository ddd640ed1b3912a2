"""`chat` with tools: functions of a file, results that are typed, and what ends their rounds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_engine.errors import InvalidArgumentError, to_wire
from tests.client.commands import Terminal, run
from tests.client.fake_server import WAIT_S, FakeTriton, Received, fail, pb, say, say_calls
from triton_chat.cli.calls import LONGEST

MODULE = '''\
from __future__ import annotations

import dataclasses
import time
from typing import Annotated

from neighbour import DEGREES

@dataclasses.dataclass
class Place:
    name: str

def get_weather(city: Annotated[str, "such as Paris"]) -> str:
    """Tell the weather.

    More of it."""
    print("looking")
    return f"{city}: {DEGREES} degrees"

def area(place: Place) -> float:
    raise RuntimeError(f"nobody has measured {place.name}")

def sleep() -> str:
    print("sleeping")
    while True:
        try:
            time.sleep(60)
        except Exception:
            pass

async def dream() -> str:
    time.sleep(60)

def _private(x): ...
'''
PARIS = ("1", "get_weather", '{"city": "Paris"}')
TOOL = {"type": "function", "function": {"name": "ask_human", "description": "Asks\nsomebody."}}
REFUSED = to_wire(InvalidArgumentError("the prompt is too long"))
Start = Callable[..., Terminal]


@pytest.fixture
def module(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("DEGREES = 18\n")
    path = tmp_path / "weather.py"
    path.write_text(MODULE)
    return str(path)


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([TOOL]))
    return str(path)


@pytest.fixture
def start(fake: FakeTriton, tmp_path: Path) -> Iterator[Start]:
    started: list[Terminal] = []

    def begin(*arguments: str) -> Terminal:
        terminal = Terminal(fake.url, "chat", *arguments, XDG_STATE_HOME=str(tmp_path))
        started.append(terminal)
        terminal.expect_prompt()
        return terminal

    yield begin
    for terminal in started:
        terminal.close()


def calls_then_answers(*calls: tuple[str, str, str]) -> Callable[[Received], Iterator[pb.ModelStreamInferResponse]]:
    """The calls, until there is a result; then an answer."""

    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        if messages_of(received)[-1]["role"] == "tool":
            yield say("the answer", "stop", 2)
        else:
            yield from say_calls(*calls)

    return reply


def messages_of(received: Received) -> list[dict[str, Any]]:
    return json.loads(received.tensor("messages")[0])


def results(fake: FakeTriton) -> list[str]:
    """What the model was told last."""
    return [message["content"] for message in messages_of(fake.requests[-1]) if message["role"] == "tool"]


def test_a_call_runs_once_it_is_allowed(fake: FakeTriton, start: Start, module: str) -> None:
    fake.reply = calls_then_answers(PARIS, ("2", "area", '{"place": {"name": "X"}}'))
    terminal = start("--tool-module", module, "--tool-choice", "required")
    terminal.type("one\n")
    terminal.expect('get_weather(city="Paris")')
    terminal.expect("run it? [y/N] ")
    terminal.type("y\n")
    terminal.expect("looking")
    terminal.expect("Paris: 18 degrees")
    terminal.expect('area(place={"name": "X"})')
    terminal.expect("run it? [y/N] ")
    terminal.type("y\n")
    terminal.expect("the answer")
    assert results(fake) == ["Paris: 18 degrees", '{"error": "RuntimeError: nobody has measured X"}']
    first, second = (json.loads(received.tensor("chat_parameters")[0]) for received in fake.requests)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["get_weather", "area", "sleep", "dream"]
    assert (first["tool_choice"], second["tool_choice"]) == ("required", "auto")


def test_a_call_that_is_not_allowed_is_told(fake: FakeTriton, start: Start, module: str) -> None:
    fake.reply = calls_then_answers(PARIS)
    terminal = start("--tool-module", module)
    terminal.type("one\n")
    terminal.expect("run it? [y/N] ")
    terminal.type("\n")
    terminal.expect("the answer")
    assert json.loads(results(fake)[0]) == {"error": "the user did not allow this call"}
    assert b"looking" not in terminal.output


def test_without_a_terminal_all_calls_run_or_none(fake: FakeTriton, module: str) -> None:
    fake.reply = calls_then_answers(PARIS, ("2", "nope", "{}"))
    refused = run(fake.url, "chat", "--tool-module", module, stdin=b"one\n")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr.decode()
    done = run(fake.url, "chat", "--tool-module", module, "--yes", stdin=b"one\n")
    assert (done.returncode, done.stdout) == (0, b"the answer\n")
    assert 'get_weather(city="Paris")\nlooking\n  Paris: 18 degrees\n' in done.stderr.decode()
    assert results(fake)[0] == "Paris: 18 degrees"
    assert "no tool 'nope'" in results(fake)[1]


def test_a_call_has_a_time_limit(fake: FakeTriton, module: str) -> None:
    fake.reply = calls_then_answers(("1", "sleep", "{}"), ("2", "dream", "{}"))
    done = run(fake.url, "chat", "--tool-module", module, "--yes", "--tool-timeout", "0.1", stdin=b"one\n")
    assert done.stdout == b"the answer\n"
    errors = [json.loads(content)["error"] for content in results(fake)]
    assert errors == [f"{name} took longer than 0.1 seconds" for name in ("sleep", "dream")]


def test_ctrl_c_stops_the_calls_and_not_the_conversation(fake: FakeTriton, start: Start, module: str) -> None:
    fake.reply = calls_then_answers(PARIS, ("2", "sleep", "{}"), ("3", "sleep", "{}"))
    terminal = start("--tool-module", module, "--yes")
    terminal.type("one\n")
    terminal.expect("sleeping")
    terminal.type(Terminal.CTRL_C)
    terminal.expect("[stopped]")
    terminal.expect_prompt()
    assert len(fake.requests) == 1
    fake.reply = lambda _: iter([say("well then", "stop", 2)])
    terminal.type("two\n")
    terminal.expect("well then")
    stopped = '{"error": "the user stopped this call"}'
    assert results(fake) == ["Paris: 18 degrees", stopped, stopped]
    assert messages_of(fake.requests[-1])[-1] == {"role": "user", "content": "two"}


def test_a_result_is_typed(fake: FakeTriton, start: Start, module: str, tools: str) -> None:
    fake.reply = calls_then_answers(("1", "ask_human", '{"what": "好"}'), ("2", "get_weather", '{"city": "Paris"}'))
    terminal = start("--tools", tools, "--tool-module", module, "--yes")
    terminal.type("/tools\n")
    terminal.expect("get_weather  Tell the weather.")
    terminal.expect("ask_human  Asks")
    terminal.expect_prompt()
    terminal.type("one\n")
    terminal.expect('ask_human(what="好")')
    terminal.expect("result> ")
    terminal.type("no idea\n")
    terminal.expect("the answer")
    assert results(fake) == ["no idea", "Paris: 18 degrees"]


def test_the_next_question_in_a_pipe_is_no_result(fake: FakeTriton, module: str, tools: str) -> None:
    fake.reply = calls_then_answers(("1", "ask_human", "{}"))
    for flags in ((), ("--tool-module", module, "--yes")):
        done = run(fake.url, "chat", "--tools", tools, *flags, stdin=b"one\ntwo\n")
        assert done.returncode == 2
        assert "--tools asks for the result of each call: use a terminal" in done.stderr.decode()
    assert fake.requests == []
    done = run(fake.url, "chat", stdin=b"one\ntwo\n")  # a model may call what it was not offered
    assert (done.returncode, done.stderr.decode().count("[stopped]")) == (0, 2)
    assert [messages_of(received)[-1]["content"] for received in fake.requests] == ["one", "two"]


def test_what_was_typed_before_a_question_does_not_answer_it(fake: FakeTriton, start: Start, module: str) -> None:
    typed = threading.Event()

    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        if messages_of(received)[-1]["role"] == "user":
            yield say("let me see")
            assert typed.wait(WAIT_S)
        yield from calls_then_answers(PARIS)(received)

    fake.reply = reply
    terminal = start("--tool-module", module)
    terminal.type("one\n")
    terminal.expect("let me see")
    terminal.type("y\n")
    terminal.expect("y\r\n")
    typed.set()
    terminal.expect("run it? [y/N] ")
    terminal.type("n\n")
    terminal.expect("the answer")
    assert json.loads(results(fake)[0]) == {"error": "the user did not allow this call"}


def test_a_long_call_does_not_scroll_its_beginning_away(fake: FakeTriton, start: Start, module: str) -> None:
    fake.reply = calls_then_answers(("1", "get_weather", json.dumps({"city": "x" * 100_000})))
    terminal = start("--tool-module", module)
    terminal.type("one\n")
    terminal.expect("x ... (98020 more characters)")
    terminal.expect("run it? [y/N] ")
    assert len(terminal.output) < 3000


def test_a_result_has_a_longest_length(fake: FakeTriton, tmp_path: Path) -> None:
    (tmp_path / "big.py").write_text("def big() -> str:\n    return 'x' * 5_000_000\n")
    fake.reply = calls_then_answers(("1", "big", "{}"))
    done = run(fake.url, "chat", "--tool-module", str(tmp_path / "big.py"), "--yes", stdin=b"one\n")
    limit = f"the first {LONGEST} of 5000000 characters"
    assert results(fake) == [f"{'x' * LONGEST}\n[cut: these are {limit}]"]
    assert f"[the model gets {limit}]" in done.stderr.decode()


def test_a_conversation_that_the_server_refuses_can_be_left(fake: FakeTriton, module: str) -> None:
    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield from say_calls(PARIS) if len(messages_of(received)) == 1 else [fail(REFUSED)]

    fake.reply = reply
    done = run(fake.url, "chat", "--tool-module", module, "--yes", stdin=b"one\ntwo\n/new\nthree\n")
    assert done.stderr.decode().count("/new starts again without it") == 3
    fake.reply = lambda _: iter([fail(REFUSED)])
    done = run(fake.url, "chat", stdin=b"one\n")
    assert "/new" not in done.stderr.decode()


def test_arguments_that_are_no_json_are_told_to_the_model(fake: FakeTriton, module: str) -> None:
    fake.reply = calls_then_answers(("1", "get_weather", '{"x": }'))
    done = run(fake.url, "chat", "--tool-module", module, "--yes", stdin=b"one\n")
    assert 'get_weather({"x": })\n[not run: the arguments are no JSON object]\n' in done.stderr.decode()
    assert results(fake) == ['{"error": "the arguments are no JSON object"}']
    assert done.stdout == b"the answer\n"


def test_the_rounds_are_bounded(fake: FakeTriton, module: str) -> None:
    fake.reply = lambda _: iter(say_calls(PARIS))
    flags = ("--tool-module", module, "--yes", "--max-rounds", "2")
    done = run(fake.url, "chat", *flags, stdin=b"one\n")
    assert len(fake.requests) == 3
    assert "2 answers in a row have called; --max-rounds allows more" in done.stderr.decode()
    run(fake.url, "chat", *flags, stdin=b"one\ntwo\n")
    roles = [message["role"] for message in messages_of(fake.requests[6])]
    assert roles == ["user", *["assistant", "tool"] * 3, "user"]


def test_a_call_that_was_cut_does_not_run(fake: FakeTriton, module: str) -> None:
    fake.reply = lambda _: iter(say_calls(("1", "get_weather", '{"city": "Par'), finish="length"))
    done = run(fake.url, "chat", "--tool-module", module, "--yes", stdin=b"one\n")
    assert 'get_weather({"city": "Par [cut]  [not run: the answer was cut]' in done.stderr.decode()
    assert len(fake.requests) == 1


def test_an_error_after_a_call_keeps_the_results(fake: FakeTriton, start: Start, module: str) -> None:
    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        yield from say_calls(PARIS) if len(fake.requests) == 1 else [fail("Exceeds maximum queue size")]

    fake.reply = reply
    terminal = start("--tool-module", module, "--yes")
    terminal.type("one\n")
    terminal.expect("error: Exceeds maximum queue size")
    terminal.expect_prompt()
    terminal.type("two\n")
    terminal.expect("error: ")
    roles = [message["role"] for message in messages_of(fake.requests[-1])]
    assert roles == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize(
    ("name", "source", "part"),
    [
        (None, "", "there is no file"),
        ("tools.txt", "", "its name must end in .py"),
        ("t.py", "x = 1\n", "has no public function"),
        ("t.py", "def f(:\n", "SyntaxError"),
        ("t.py", "x = 1\n1 / 0\n", "(line 2): ZeroDivisionError"),
        ("t.py", "raise SystemExit(3)", "SystemExit: 3"),
        ("t.py", "def f(x): ...", "f cannot be a tool: its parameter x has no type"),
        ("t.py", "__all__ = ['g']\ndef f(x): ...\ndef g(): ...\n", ""),
        ("t.py", "__all__ = ['g']\n", "__all__"),
    ],
)
def test_a_module_that_cannot_be_used_says_why(
    fake: FakeTriton, tmp_path: Path, name: str | None, source: str, part: str
) -> None:
    path = tmp_path / (name or "none.py")
    if name:
        path.write_text(source)
    done = run(fake.url, "chat", "--tool-module", str(path), "--yes", stdin=b"")
    assert done.returncode == (2 if part else 0)
    assert part in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_yes_without_a_module(fake: FakeTriton) -> None:
    done = run(fake.url, "chat", "--yes", stdin=b"")
    assert done.returncode == 2
    assert "--tool-module" in done.stderr.decode()
