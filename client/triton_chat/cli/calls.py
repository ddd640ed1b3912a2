"""What becomes of a model's calls in the terminal: a function runs, or whoever sits there says what the result is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_chat.cli import exits, terminal
from triton_chat.errors import InvalidRequestError
from triton_chat.types import Tool, ToolCall, failure

if TYPE_CHECKING:
    from triton_chat.cli.tool_module import ToolModule

_SHOWN = 400
"""Characters of a result."""
SHOWN_CALL = 2_000
"""Characters of a call: its beginning stays on the screen beside the question whether to run it."""
LONGEST = 100_000
"""Characters of a result that the model gets: one that does not fit its context would end the conversation."""
NOT_ALLOWED = "the user did not allow this call"
STOPPED = "the user stopped this call"
NO_OBJECT = "the arguments are no JSON object"


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls are answered.

    Attributes:
        module: functions that run here; None where there are none.
        typed: names of tools whose results are typed, where the module has none of the name.
        confirms: whether each is asked for first.
        interactive: whether somebody sits at a terminal.
        max_rounds: how many answers of one turn may call.
    """

    module: ToolModule | None
    typed: frozenset[str]
    confirms: bool
    interactive: bool
    max_rounds: int

    def __post_init__(self) -> None:
        if self.interactive:
            return
        if self.module is not None and self.confirms:
            raise InvalidRequestError("--tool-module asks before each call: use a terminal, or --yes to run them all")
        if any(self.module is None or name not in self.module for name in self.typed):
            raise InvalidRequestError("--tools asks for the result of each call: use a terminal, or --tool-module")

    @property
    def tools(self) -> list[Tool]:
        """Those of the module."""
        return [] if self.module is None else self.module.tools

    def result(self, call: ToolCall) -> str:
        """Show a call; returns what it comes to, as the content of a message.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            EOFError: there is nobody to type a result.
        """
        exits.say(terminal.shortened(terminal.call_line(call), SHOWN_CALL))
        if call.values is None:
            exits.say(f"[not run: {NO_OBJECT}]")
            return failure(NO_OBJECT)
        if self.module is None or (call.name in self.typed and call.name not in self.module):
            return _limited(self._ask("result> "))
        if self.confirms and call.name in self.module and not self._allowed():
            return failure(NOT_ALLOWED)
        content = self.module.run(call)
        for line in content[:_SHOWN].splitlines() or [""]:
            terminal.write_dimmed(f"  {terminal.printable(line)}\n")
        if len(content) > _SHOWN:
            terminal.write_dimmed(f"  ... ({len(content)} characters)\n")
        return _limited(content)

    def _allowed(self) -> bool:
        return self._ask("run it? [y/N] ").strip().lower() in ("y", "yes")

    def _ask(self, question: str) -> str:
        """A pipe is not asked: its next line is a question to the model."""
        if not self.interactive:
            raise EOFError
        terminal.discard_typed()
        return input(question)


def stopped() -> str:
    """The content for a call that nobody answers any more."""
    return failure(STOPPED)


def _limited(content: str) -> str:
    if len(content) <= LONGEST:
        return content
    limit = f"the first {LONGEST} of {len(content)} characters"
    exits.say(f"[the model gets {limit}]")
    return f"{content[:LONGEST]}\n[cut: these are {limit}]"
