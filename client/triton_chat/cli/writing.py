"""An answer on the screen, as it comes."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from triton_chat.cli import terminal
from triton_chat.types import ChatEvent

if TYPE_CHECKING:
    from typing_extensions import Self


class AnswerWriter:
    """Text goes to standard output, reasoning to standard error; the end of the `with` block ends the last line."""

    def __init__(self, *, reasoning: bool) -> None:
        """`reasoning`: whether it is shown at all."""
        self._shows_reasoning = reasoning
        self._thought_ends_line = True
        self._text_ends_line = True

    def write(self, event: ChatEvent) -> None:
        """The next event; calls are whole only at the end, and are not written here."""
        if event.reasoning and self._shows_reasoning:
            self._thought_ends_line = event.reasoning.endswith("\n")
            terminal.write_dimmed(event.reasoning)
        if event.text:
            self._end_thought()
            self._text_ends_line = event.text.endswith("\n")  # first: Ctrl-C may come while it is written
            terminal.write(event.text)

    def _end_thought(self) -> None:
        if not self._thought_ends_line:
            self._thought_ends_line = True
            terminal.write_dimmed("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_thought()
        if not self._text_ends_line:
            terminal.write("\n")
