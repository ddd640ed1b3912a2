"""What becomes of a model's calls in the terminal: a function runs, or whoever sits there says what the result is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triton_chat.cli import exits, terminal
from triton_chat.errors import InvalidRequestError
from triton_chat.types import Tool, ToolCall

if TYPE_CHECKING:
    from triton_chat.cli.tool_module import ToolModule

_SHOWN = 400
"""Characters of a result."""
NOT_ALLOWED = "the user did not allow this call"
STOPPED = "the user stopped this call"


@dataclass(frozen=True, slots=True)
class Calls:
    """How calls are answered.

    Attributes:
        module: functions that run here; None where there are none.
        confirms: whether each is asked for first.
        interactive: whether somebody sits at a terminal.
        max_rounds: how many answers of one turn may call.
    """

    module: ToolModule | None
    confirms: bool
    interactive: bool
    max_rounds: int

    def __post_init__(self) -> None:
        if self.module is not None and self.confirms and not self.interactive:
            raise InvalidRequestError("--tool-module asks before each call: use a terminal, or --yes to run them all")

    @property
    def tools(self) -> list[Tool]:
        """Those of the module."""
        return [] if self.module is None else self.module.tools

    def result(self, call: ToolCall, typed: frozenset[str]) -> str:
        """Show a call; returns what it comes to, as the content of a message.

        Args:
            typed: names of tools whose results are typed.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            EOFError: there is nobody to type a result.
        """
        exits.say(terminal.call_line(call))
        if self.module is None or (call.name in typed and call.name not in self.module):
            return self._ask("result> ")
        if self.confirms and call.name in self.module and not self._allowed():
            return _failure(NOT_ALLOWED)
        content = self.module.run(call)
        for line in content[:_SHOWN].splitlines() or [""]:
            terminal.whisper(f"  {terminal.printable(line)}\n")
        if len(content) > _SHOWN:
            terminal.whisper(f"  ... ({len(content)} characters)\n")
        return content

    def _allowed(self) -> bool:
        return self._ask("run it? [y/N] ").strip().lower() in ("y", "yes")

    def _ask(self, prompt: str) -> str:
        return input(prompt if self.interactive else "")


def stopped() -> str:
    """The content for a call that nobody answers any more."""
    return _failure(STOPPED)


def _failure(sentence: str) -> str:
    """As `triton_chat.tools.failure`, which brings pydantic."""
    return json.dumps({"error": sentence})
