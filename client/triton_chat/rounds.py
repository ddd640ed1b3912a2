"""The rounds of a conversation with tools: answer, calls, their results, the next answer.

Told once for both clients, which differ in how they wait. `triton_chat.tools` is loaded when a run begins, because it
brings pydantic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from triton_chat.errors import InvalidRequestError
from triton_chat.types import CallOptions, ChatResult, Message, Messages, ToolCall, conversation, function_of

if TYPE_CHECKING:
    from triton_chat.tools import Function, Toolbox

    Functions = Iterable[Function]


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What came of `run_tools`."""

    answer: ChatResult
    """The last one."""
    messages: tuple[Message, ...]
    """The whole conversation, the last answer too. A next question may follow, after the results of `open_calls`."""
    results: tuple[ChatResult, ...]
    """Every answer, for their tokens and times."""

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """Those of the last answer, which nobody has run: of a tool of the caller's own, or after `max_rounds`.

        The engine takes a conversation without their results too, but chat templates and other servers may not.
        """
        return self.answer.calls_to_answer

    @property
    def complete(self) -> bool:
        """Whether it ended by itself; otherwise it was cut, or has calls that nobody has run."""
        return self.answer.finish_reason == "stop" and not self.answer.tool_calls


def unforced(options: CallOptions) -> CallOptions:
    """For every round but the first: where a call is forced, no answer would ever be the last."""
    options = CallOptions(**options)
    if options.get("tool_choice") not in (None, "none"):
        options["tool_choice"] = "auto"
    return options


class Rounds:
    """A run that goes on; the client asks and hands the answers over."""

    def __init__(self, messages: Messages, functions: Functions, options: CallOptions, max_rounds: int) -> None:
        """Raises InvalidRequestError for a function that cannot be a tool."""
        if max_rounds < 1:
            raise InvalidRequestError(f"must be at least 1 (got {max_rounds})", field="max_rounds")
        self._toolbox: Toolbox = import_module("triton_chat.tools").Toolbox(functions)
        self._options = options
        self._left = max_rounds
        self._results: list[ChatResult] = []
        self.messages: list[Message] = list(conversation(messages))
        self.over = False

    @property
    def options(self) -> CallOptions:
        """Of the next request."""
        options = unforced(self._options) if self._results else CallOptions(**self._options)
        options["tools"] = [*self._toolbox.tools, *(self._options.get("tools") or ())]
        return options

    @property
    def run(self) -> ToolRun:
        """What there is so far; at least one answer."""
        return ToolRun(self._results[-1], tuple(self.messages), tuple(self._results))

    def answer(self, result: ChatResult) -> None:
        """Take an answer; run its calls one after the other."""
        calls = self._take(result)
        self._add(calls, [self._toolbox.call(call) for call in calls])

    async def answer_all(self, result: ChatResult) -> None:
        """Take an answer; run its calls at the same time."""
        calls = self._take(result)
        self._add(calls, await asyncio.gather(*map(self._toolbox.acall, calls)))

    def _take(self, result: ChatResult) -> tuple[ToolCall, ...]:
        """The calls to run; without any, the run is over."""
        self._results.append(result)
        self.messages.append(result.message)
        calls = result.calls_to_answer
        self._left -= 1
        self.over = not calls or self._left < 0 or any(map(self._is_others, calls))
        return () if self.over else calls

    def _add(self, calls: Sequence[ToolCall], contents: Sequence[str]) -> None:
        self.messages += [call.result(content) for call, content in zip(calls, contents, strict=True)]

    def _is_others(self, call: ToolCall) -> bool:
        """Whether it is of a tool that the caller has for himself."""
        names = {function_of(tool).get("name") for tool in self._options.get("tools") or ()}
        return call.name in names and call.name not in self._toolbox
