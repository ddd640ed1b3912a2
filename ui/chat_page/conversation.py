"""The conversation as plain data: what was asked, what was answered, and its two forms for download."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["running", "complete", "stopped", "failed"]
Message = dict[str, str]

AT_ONCE_S = 0.02
"""What comes within so short a time came at once: it tells how late the page was, not how fast the model is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A snapshot; the next one takes its place when something arrives. Times are in seconds from the sending on."""

    text: str = ""
    state: State = "running"
    model: str = ""
    finish_reason: str = ""
    problem: str = ""
    """A sentence for the user; only of a failed answer."""
    first_token_s: float | None = None
    begun_s: float | None = None
    """When the text was there that came at once with the first token,"""
    begun_characters: int = 0
    """and how long that was: the tokens of a chunk are not known, so its share of the text stands for them."""
    duration_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after those that came first; None where that cannot be said, as for a stopped answer."""
        if self.begun_s is None or self.duration_s is None or self.completion_tokens is None:
            return None
        seconds, characters = self.duration_s - self.begun_s, len(self.text) - self.begun_characters
        if seconds < AT_ONCE_S or not characters:
            return None
        return self.completion_tokens * characters / len(self.text) / seconds

    def grown(self, text: str, now_s: float, finish_reason: str) -> Answer:
        """With the next chunk of the stream, which came at `now_s` and may be empty."""
        grown = replace(
            self, text=self.text + text, duration_s=now_s, finish_reason=finish_reason or self.finish_reason
        )
        if not text:
            return grown
        first_s = now_s if self.first_token_s is None else self.first_token_s
        if now_s - first_s >= AT_ONCE_S:
            return grown
        return replace(grown, first_token_s=first_s, begun_s=now_s, begun_characters=len(grown.text))

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


@dataclass(slots=True)
class Turn:
    """One question. Its answer has one writer, the generation that runs for it."""

    question: str
    answer: Answer = Answer()


@dataclass(slots=True)
class Conversation:
    turns: list[Turn] = field(default_factory=list)

    def messages(self, system: str = "") -> list[Message]:
        """What the model is sent. A question that got no answer is left out, unless it is the last."""
        messages = [_message("system", system)] if system.strip() else []
        for turn in self.turns:
            if turn.answer.text:
                messages += [_message("user", turn.question), _message("assistant", turn.answer.text)]
            elif turn is self.turns[-1]:
                messages.append(_message("user", turn.question))
        return messages

    def to_json(self, system: str = "") -> str:
        """`messages` can be sent again as it is; `answers` has the figures of the assistant's messages, in order."""
        answers = [turn.answer.figures() for turn in self.turns if turn.answer.text]
        document = {"messages": self.messages(system), "answers": answers}
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"

    def to_markdown(self, system: str = "") -> str:
        """For reading: a heading for each message, and the model's own Markdown below it."""
        names = {"system": "System prompt", "user": "You", "assistant": "Assistant"}
        parts = [f"## {names[message['role']]}\n\n{message['content']}" for message in self.messages(system)]
        return "\n\n".join(["# Conversation", *parts]) + "\n"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
