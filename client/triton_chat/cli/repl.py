"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_chat
from triton_chat.cli import exits, terminal, tooling
from triton_chat.cli.answers import connected
from triton_chat.cli.calls import SHOWN_CALL, Calls, stopped
from triton_chat.cli.options import RequestOptions
from triton_chat.cli.writing import AnswerWriter
from triton_chat.errors import InvalidRequestError, TritonChatError
from triton_chat.rounds import unforced
from triton_chat.types import ChatResult, Tool, ToolCall

if TYPE_CHECKING:
    from triton_chat.cli.tool_module import ToolModule
    from triton_chat.client import ChatClient

HELP = """\
/help           this list
/new            start again; the system prompt stays
/system TEXT    set the system prompt; without TEXT, show it
/save FILE      write the conversation as JSON
/tools          list the tools that the model may call
/stats          show or hide tokens per second and time to first token
/exit           leave (so does Ctrl-D)
Ctrl-C stops the current answer or call; at the prompt, twice, it leaves.
You type the result of a call that has no function here."""
_HISTORY_LINES = 1000


class Leave(Exception):  # noqa: N818 - not an error
    """The user wants to leave."""


class Conversation:
    """The messages so far and the commands that change them."""

    def __init__(self, system: str | None, show_stats: bool, tools: Sequence[Tool] = ()) -> None:
        self.system = system
        self.show_stats = show_stats
        self.turns: list[dict[str, Any]] = []
        self._offered = tools
        self._commands: dict[str, Callable[[str], str]] = {
            "/help": lambda _: HELP,
            "/new": self._new,
            "/system": self._system,
            "/save": self._save,
            "/tools": self._tools,
            "/stats": self._stats,
            "/exit": self._exit,
        }

    @property
    def messages(self) -> list[dict[str, Any]]:
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

    def _tools(self, _: str) -> str:
        return "\n".join(map(tooling.tool_line, self._offered)) or "no tools: --tools or --tool-module gives some"

    def _stats(self, _: str) -> str:
        self.show_stats = not self.show_stats
        return f"statistics {'on' if self.show_stats else 'off'}"

    def _exit(self, _: str) -> str:
        raise Leave


@dataclass(frozen=True, slots=True)
class ToolFlags:
    """What the flags say about running calls."""

    module: str | None
    yes: bool
    timeout_s: float
    max_rounds: int


def chat(options: RequestOptions, system: str | None, flags: ToolFlags) -> None:
    """Talk until the user leaves. An error ends a turn, not the conversation.

    Raises:
        InvalidRequestError: a flag that makes no sense here, or a tool module that cannot be used.
    """
    sampling = options.sampling
    wants_logprobs = sampling.logprobs is not None or sampling.prompt_logprobs is not None
    if options.connection.as_json or wants_logprobs or sampling.return_token_ids:
        raise InvalidRequestError("chat has neither --json nor --logprobs nor --return-token-ids: use ask")
    interactive = sys.stdin.isatty()
    typed = frozenset(map(tooling.name_of, options.chat.get("tools") or ()))
    calls = Calls(_module(flags), typed, not flags.yes, interactive, flags.max_rounds)
    tools = [*calls.tools, *(options.chat.get("tools") or ())]
    if tools:
        options = replace(options, chat={**options.chat, "tools": tools})
    conversation = Conversation(system, options.stats, tools)
    if interactive:
        exits.say(f"talking to {options.model} at {options.connection.url}; /help lists commands, Ctrl-D leaves")
    with connected(options.connection) as client, _line_editing(interactive), suppress(Leave):
        for line in _lines(interactive):
            if line.startswith("/"):
                exits.say(conversation.command(line))
            else:
                _Turn(client, conversation, options, calls).ask(line)


def _module(flags: ToolFlags) -> ToolModule | None:
    """Loaded only where it is wanted, because it brings pydantic."""
    if flags.module is None:
        if flags.yes:
            raise InvalidRequestError("--yes runs the calls of --tool-module, which is not given")
        return None
    module: ToolModule = import_module("triton_chat.cli.tool_module").ToolModule(flags.module, flags.timeout_s)
    return module


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


class _Turn:
    """One line of the user, and the answers that follow it: as long as they call, there is another one."""

    def __init__(self, client: ChatClient, conversation: Conversation, options: RequestOptions, calls: Calls) -> None:
        self._client = client
        self._conversation = conversation
        self._calls = calls
        self._shows_reasoning = options.reasoning
        self._options = options.call()

    def ask(self, line: str) -> None:
        """Ctrl-C and errors keep what has come; a turn with no answer is dropped."""
        turns = self._conversation.turns
        turns.append({"role": "user", "content": line})
        for _ in range(self._calls.max_rounds):
            wanted = self._answer()
            if not wanted or not self._run(wanted):
                break
            self._options = unforced(self._options)
        else:
            if wanted := self._answer():
                self._tell(wanted, [])
                exits.say(f"[stopped: {self._calls.max_rounds} answers in a row have called; --max-rounds allows more]")
        if turns[-1]["role"] == "user":
            turns.pop()

    def _answer(self) -> tuple[ToolCall, ...]:
        """Send the conversation and print the answer; returns the calls in it that are to be answered."""
        collector = triton_chat.Collector()
        try:
            with (
                self._client.stream(self._conversation.messages, **self._options) as stream,
                AnswerWriter(reasoning=self._shows_reasoning) as writer,
            ):
                for event in stream:
                    collector.add(event)
                    writer.write(event)
        except KeyboardInterrupt:
            exits.say("[stopped]")
        except TritonChatError as error:
            exits.report(error)
            if isinstance(error, InvalidRequestError) and len(self._conversation.turns) > 1:
                exits.say("hint: if what came before is the reason, /new starts again without it")
        return self._keep(collector.result())

    def _keep(self, result: ChatResult) -> tuple[ToolCall, ...]:
        calls = result.calls_to_answer
        for cut in result.tool_calls:
            if cut not in calls:
                line = terminal.shortened(terminal.call_line(cut, cut=True), SHOWN_CALL)
                exits.say(f"{line}  [not run: the answer was cut]")
        if result.text or calls:
            self._conversation.turns.append(result.message)
            if self._conversation.show_stats:
                exits.say(terminal.stats_line(result))
        return calls

    def _run(self, wanted: tuple[ToolCall, ...]) -> bool:
        """Answer each call; False where the user stops."""
        contents: list[str] = []
        try:
            for call in wanted:
                contents.append(self._calls.result(call))  # noqa: PERF401 - what came before Ctrl-C stays
        except (KeyboardInterrupt, EOFError):
            exits.say("\n[stopped]")
        self._tell(wanted, contents)
        return len(contents) == len(wanted)

    def _tell(self, wanted: tuple[ToolCall, ...], contents: list[str]) -> None:
        """What lacks a result counts as stopped: a conversation with an open call would be refused."""
        for call, content in zip_longest(wanted, contents, fillvalue=None):
            assert call is not None
            self._conversation.turns.append(call.result(stopped() if content is None else content))


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
