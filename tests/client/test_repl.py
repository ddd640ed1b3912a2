from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.commands import WAIT_S, Terminal, run
from tests.client.fake_server import FakeTriton, Received, fail, pb, say
from triton_chat.cli.repl import Conversation, Leave


def messages_of(received: Received) -> object:
    return json.loads(received.tensor("messages")[0])


def say_answer(_: Received) -> Iterator[pb.ModelStreamInferResponse]:
    yield say("the ", tokens=1)
    yield say("answer", "stop", tokens=2)


@pytest.fixture
def terminal(fake: FakeTriton, tmp_path: Path) -> Iterator[Terminal]:
    fake.reply = say_answer
    terminal = Terminal(fake.url, "chat", "--system", "be brief", XDG_STATE_HOME=str(tmp_path))
    yield terminal
    terminal.close()


def test_a_conversation_has_a_history(fake: FakeTriton, terminal: Terminal, tmp_path: Path) -> None:
    terminal.expect_prompt()
    terminal.type("one\n")
    terminal.expect("the answer")
    terminal.expect_prompt()
    terminal.type("/stats\ntwo\n")
    terminal.expect("statistics on")
    terminal.expect("2 tokens in")
    assert messages_of(fake.requests[-1]) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "the answer"},
        {"role": "user", "content": "two"},
    ]
    terminal.expect_prompt()
    terminal.type(Terminal.CTRL_D)
    assert terminal.wait() == 0
    assert "one" in (tmp_path / "triton-chat" / "history").read_text()
    assert (tmp_path / "triton-chat" / "history").stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_only_the_answer(fake: FakeTriton, terminal: Terminal) -> None:
    fake.reply = fake.stalls_after("half an", " answer")
    terminal.expect_prompt()
    terminal.type("one\n")
    terminal.expect("half an answer")
    terminal.type(Terminal.CTRL_C)
    terminal.expect("[stopped]")
    assert fake.requests[-1].cancelled.wait(WAIT_S)
    fake.reply = say_answer
    terminal.expect_prompt()
    terminal.type("two\n")
    terminal.expect("the answer")
    messages = messages_of(fake.requests[-1])
    assert isinstance(messages, list)
    assert messages[2] == {"role": "assistant", "content": "half an answer"}


def test_ctrl_c_twice_at_the_prompt_leaves(terminal: Terminal) -> None:
    terminal.expect_prompt()
    terminal.type(Terminal.CTRL_C)
    terminal.expect("leaves)")
    terminal.expect_prompt()
    terminal.type(Terminal.CTRL_C)
    assert terminal.wait() == 0


def test_an_error_ends_the_turn_alone(fake: FakeTriton, terminal: Terminal) -> None:
    fake.reply = lambda _: iter([fail("Exceeds maximum queue size")])
    terminal.expect_prompt()
    terminal.type("one\n")
    terminal.expect("error: Exceeds maximum queue size")
    terminal.expect_prompt()
    fake.reply = say_answer
    terminal.type("two\n")
    terminal.expect("the answer")
    assert messages_of(fake.requests[-1]) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two"},
    ]
    terminal.type("/exit\n")
    assert terminal.wait() == 0


def test_without_a_terminal(fake: FakeTriton) -> None:
    fake.reply = say_answer
    done = run(fake.url, "chat", stdin=b"one\n\n/nonsense\ntwo\n/exit\nthree\n")
    assert (done.returncode, done.stdout) == (0, b"the answer\nthe answer\n")
    assert "no command /nonsense" in done.stderr.decode()
    assert len(fake.requests) == 2


class TestCommands:
    def test_new_keeps_the_system_prompt(self) -> None:
        conversation = Conversation("be brief", show_stats=False)
        conversation.turns.append({"role": "user", "content": "x"})
        conversation.command("/new")
        assert conversation.messages == [{"role": "system", "content": "be brief"}]

    def test_system(self) -> None:
        conversation = Conversation(None, show_stats=False)
        assert "(none)" in conversation.command("/system")
        assert "be kind" in conversation.command("/system  be kind ")
        assert conversation.messages == [{"role": "system", "content": "be kind"}]

    def test_save(self, tmp_path: Path) -> None:
        conversation = Conversation("日本", show_stats=False)
        path = tmp_path / "a b.json"
        assert "saved" in conversation.command(f"/save {path}")
        assert json.loads(path.read_text(encoding="utf-8")) == {"messages": conversation.messages}
        assert "exists already" in conversation.command(f"/save {path}")
        assert "cannot write" in conversation.command(f"/save {tmp_path / 'no' / 'folder'}")
        assert "needs a file name" in conversation.command("/save")

    def test_help_lists_every_command(self) -> None:
        conversation = Conversation(None, show_stats=False)
        assert all(name in conversation.command("/help") for name in conversation._commands)

    def test_exit(self) -> None:
        with pytest.raises(Leave):
            Conversation(None, show_stats=False).command("/exit")
