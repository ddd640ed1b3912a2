"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_chat
from triton_chat.cli import exits, terminal
from triton_chat.cli.answers import connected
from triton_chat.cli.options import RequestOptions
from triton_chat.errors import InvalidRequestError, TritonChatError
from triton_chat.types import ChatResult

if TYPE_CHECKING:
    from triton_chat.client import ChatClient

HELP = """\
/help           this list
/new            start again; the system prompt stays
/system TEXT    set the system prompt; without TEXT, show it
/save FILE      write the conversation as JSON
/stats          show or hide tokens per second and time to first token
/exit           leave (so does Ctrl-D)
Ctrl-C stops the current answer; at the prompt, twice, it leaves."""
_HISTORY_LINES = 1000


class Leave(Exception):  # noqa: N818 - not an error
    """The user wants to leave."""


class Conversation:
    """The messages so far and the commands that change them."""

    def __init__(self, system: str | None, show_stats: bool) -> None:
        self.system = system
        self.show_stats = show_stats
        self.turns: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/new": self._new,
            "/system": self._system,
            "/save": self._save,
            "/stats": self._stats,
            "/exit": self._exit,
        }

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the server gets."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def command(self, line: str) -> str:
        """Run a line that begins with a slash; returns what to tell the user.

        Raises:
            Leave: the line was /exit.
        """
        name, _, argument = line.partition(" ")
        action = self._commands.get(name)
        return action(argument.strip()) if action else f"no command {name}: /help lists them"

    def _new(self, _: str) -> str:
        self.turns.clear()
        return "a new conversation"

    def _system(self, text: str) -> str:
        if text:
            self.system = text
        return f"system prompt: {self.system or '(none)'}"

    def _save(self, name: str) -> str:
        if not name:
            return "/save needs a file name"
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                json.dump({"messages": self.messages}, file, ensure_ascii=False, indent=2)
        except FileExistsError:
            return f"{name} exists already: choose another name"
        except OSError as error:
            return f"cannot write {name}: {error.strerror}"
        return f"saved to {name}"

    def _stats(self, _: str) -> str:
        self.show_stats = not self.show_stats
        return f"statistics {'on' if self.show_stats else 'off'}"

    def _exit(self, _: str) -> str:
        raise Leave


def chat(options: RequestOptions, system: str | None) -> None:
    """Talk until the user leaves. An error ends a turn, not the conversation.

    Raises:
        InvalidRequestError: a flag that makes no sense here.
    """
    sampling = options.sampling
    wants_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    if options.connection.as_json or wants_logprobs or sampling.return_token_ids:
        raise InvalidRequestError("chat has neither --json nor --logprobs nor --return-token-ids: use ask")
    conversation = Conversation(system, options.stats)
    interactive = sys.stdin.isatty()
    if interactive:
        exits.say(f"talking to {options.model} at {options.connection.url}; /help lists commands, Ctrl-D leaves")
    with connected(options.connection) as client, _line_editing(interactive), suppress(Leave):
        for line in _lines(interactive):
            if line.startswith("/"):
                exits.say(conversation.command(line))
            else:
                _turn(client, conversation, options, line)


def _lines(interactive: bool) -> Iterator[str]:
    """Lines of the user until the end of input or the second Ctrl-C in a row."""
    interrupted = False
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            if interactive:
                exits.say("")
            return
        except UnicodeDecodeError:
            exits.say("error: that line is not UTF-8 text")
            continue
        except KeyboardInterrupt:
            exits.say("" if interrupted else "\n(Ctrl-C again, or Ctrl-D, leaves)")
            if interrupted:
                return
            interrupted = True
            continue
        interrupted = False
        if line:
            yield line


def _turn(client: ChatClient, conversation: Conversation, options: RequestOptions, line: str) -> None:
    """Send the line; print the answer. Ctrl-C and errors keep what has come; a turn with no answer is dropped."""
    conversation.turns.append({"role": "user", "content": line})
    collector = triton_chat.Collector()
    try:
        with client.stream(conversation.messages, **options.call()) as stream:
            for event in stream:
                collector.add(event)
                terminal.write(event.text)
    except KeyboardInterrupt:
        exits.say("\n[stopped]")
    except TritonChatError as error:
        exits.say("")
        exits.report(error)
    else:
        terminal.write("\n")
    _keep(conversation, collector.result())


def _keep(conversation: Conversation, result: ChatResult) -> None:
    if not result.text:
        conversation.turns.pop()
        return
    conversation.turns.append({"role": "assistant", "content": result.text})
    if conversation.show_stats:
        exits.say(terminal.stats_line(result))


@contextmanager
def _line_editing(interactive: bool) -> Iterator[None]:
    """Arrow keys and a history that lasts, where Python has readline."""
    readline: Any = None
    if interactive:
        with suppress(ImportError):
            readline = import_module("readline")
    if readline is None:
        yield
        return
    path = _history_file()
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(_HISTORY_LINES)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            readline.write_history_file(path)


def _history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "triton-chat" / "history"
