"""The conversation as plain data: what was asked, what was answered, and its two forms for download."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["running", "complete", "stopped", "failed"]
Message = dict[str, Any]

AT_ONCE_S = 0.02
"""What comes within so short a time came at once: it tells how late the page was, not how fast the model is."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool that the model wants, or the next piece of one: then id and name may be empty."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    """JSON text, which a limit may have cut."""

    def grown(self, piece: Call) -> Call:
        return Call(self.id or piece.id, self.name or piece.name, self.arguments + piece.arguments)

    def to_dict(self) -> dict[str, Any]:
        """As the API has it. Arguments for which the engine would refuse the conversation are left out."""
        arguments = self.arguments if _is_sendable(self.arguments) else "{}"
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def _is_sendable(arguments: str) -> bool:
    try:
        values = json.loads(arguments)
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "\\u0000" not in text


Pieces = Sequence[tuple[int, Call]]
"""The next pieces of calls, each with the place of its call in the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A snapshot; the next one takes its place when something arrives. Times are in seconds from the sending on."""

    text: str = ""
    reasoning: str = ""
    """What the model thought before it answered."""
    calls: tuple[Call, ...] = ()
    state: State = "running"
    model: str = ""
    finish_reason: str = ""
    problem: str = ""
    """A sentence for the user; only of a failed answer."""
    first_token_s: float | None = None
    begun_s: float | None = None
    """When what came at once with the first token was there,"""
    begun_characters: int = 0
    """and how long that was: the tokens of a chunk are not known, so its share of all characters stands for them."""
    duration_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def characters(self) -> int:
        """Of all that the model has written."""
        return len(self.text) + len(self.reasoning) + sum(len(call.name) + len(call.arguments) for call in self.calls)

    @property
    def open_calls(self) -> tuple[Call, ...]:
        """Those that wait for a result: none of an answer that was cut, since some may be missing."""
        ended = self.state == "complete" and self.finish_reason in ("tool_calls", "stop")
        return self.calls if ended else ()

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after those that came first; None where that cannot be said, as for a stopped answer."""
        if self.begun_s is None or self.duration_s is None or self.completion_tokens is None:
            return None
        seconds, characters = self.duration_s - self.begun_s, self.characters - self.begun_characters
        if seconds < AT_ONCE_S or not characters:
            return None
        return self.completion_tokens * characters / self.characters / seconds

    def grown(self, text: str, now_s: float, finish_reason: str, *, reasoning: str = "", pieces: Pieces = ()) -> Answer:
        """With the next chunk of the stream, which came at `now_s` and may be empty."""
        grown = replace(
            self,
            text=self.text + text,
            reasoning=self.reasoning + reasoning,
            calls=_joined(self.calls, pieces),
            duration_s=now_s,
            finish_reason=finish_reason or self.finish_reason,
        )
        if not (text or reasoning or pieces):
            return grown
        first_s = now_s if self.first_token_s is None else self.first_token_s
        if now_s - first_s >= AT_ONCE_S:
            return grown
        return replace(grown, first_token_s=first_s, begun_s=now_s, begun_characters=grown.characters)

    def figures(self) -> dict[str, Any]:
        """What is known beside the text, ready for JSON."""
        figures = {
            "model": self.model,
            "state": self.state,
            "finish_reason": self.finish_reason or None,
            "first_token_s": self.first_token_s,
            "duration_s": self.duration_s,
            "tokens_per_s": self.tokens_per_s,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }
        return {name: value for name, value in figures.items() if value is not None}


def _joined(calls: tuple[Call, ...], pieces: Pieces) -> tuple[Call, ...]:
    found = dict(enumerate(calls))
    for place, piece in pieces:
        found[place] = found.get(place, Call()).grown(piece)
    return tuple(call for _, call in sorted(found.items()))


@dataclass(frozen=True, slots=True)
class Round:
    """An answer that called tools, and the results that it was given, in the order of its calls."""

    answer: Answer
    results: tuple[str, ...]


@dataclass(slots=True)
class Turn:
    """One question. Its answer has one writer, the generation that runs for it."""

    question: str
    answer: Answer = Answer()
    rounds: tuple[Round, ...] = ()
    """What came before the answer."""

    @property
    def answers(self) -> list[Answer]:
        """Those that `messages` has."""
        return [one.answer for one in self.rounds] + ([self.answer] if self.answer.text else [])

    def messages(self) -> list[Message]:
        """What followed the question. Calls without results are left out, because no model takes them."""
        messages = []
        for one in self.rounds:
            called = _assistant(one.answer) | {"tool_calls": [call.to_dict() for call in one.answer.calls]}
            messages.append(called | {"content": one.answer.text or None})
            for call, result in zip(one.answer.calls, one.results, strict=True):
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        return messages + ([_assistant(self.answer)] if self.answer.text else [])


@dataclass(slots=True)
class Conversation:
    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str = "") -> list[Message]:
        """What the model is sent. A question that got no answer is left out, unless it is the last."""
        messages = [_message("system", system)] if system.strip() else []
        for turn in self.turns:
            followed = turn.messages()
            if followed or turn is self.turns[-1]:
                messages += [_message("user", turn.question), *followed]
        return messages

    def to_json(self, system: str = "") -> str:
        """`messages` can be sent again as it is; `answers` has the figures of the assistant's messages, in order."""
        answers = [answer.figures() for turn in self.turns for answer in turn.answers]
        document = {"messages": self.messages(system), "answers": answers}
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"

    def to_markdown(self, system: str = "") -> str:
        """For reading: a heading for each message, and the model's own Markdown below it."""
        parts = [_markdown(message) for message in self.messages(system)]
        return "\n\n".join(["# Conversation", *parts]) + "\n"


_HEADINGS = {"system": "System prompt", "user": "You", "assistant": "Assistant", "tool": "Result of a call"}


def _markdown(message: Message) -> str:
    parts = [f"## {_HEADINGS[message['role']]}"]
    if message.get("reasoning_content"):
        parts.append("\n".join(f"> {line}".rstrip() for line in message["reasoning_content"].splitlines()))
    if message["content"]:
        parts.append(_fenced(message["content"]) if message["role"] == "tool" else message["content"])
    functions = [call["function"] for call in message.get("tool_calls", ())]
    parts += [f"`{one['name']}`\n\n{_fenced(one['arguments'], 'json')}" for one in functions]
    return "\n\n".join(parts)


def _fenced(text: str, language: str = "") -> str:
    """As code, in a fence that is longer than any in the text: only such a one ends it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"{fence}{language}\n{text}\n{fence}"


def _assistant(answer: Answer) -> Message:
    reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
    return _message("assistant", answer.text) | reasoning


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
