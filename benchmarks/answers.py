"""What a caller sees of one request, and how it is read from a stream."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass
class Answer:
    """Times are those of the machine's monotonic clock.

    Attributes:
        tokens: that it must have.
        asked_at: when it was sent.
        times: when text came; one piece may hold several tokens.
        complete: whether it came to its end, with exactly its tokens.
    """

    tokens: int
    asked_at: float = 0.0
    times: list[float] = field(default_factory=list)
    complete: bool = False

    @property
    def first_token_s(self) -> float:
        """Infinite where none came."""
        return self.times[0] - self.asked_at if self.times else math.inf

    @property
    def per_token_s(self) -> float:
        """For each token after the first; infinite where the answer is not complete."""
        if not self.complete:
            return math.inf
        return (self.times[-1] - self.times[0]) / (self.tokens - 1) if self.tokens > 1 else 0.0

    def gaps(self, since: float, until: float) -> list[float]:
        """Between pieces of text, in seconds: those that this span of time touches."""
        return [later - sooner for sooner, later in pairwise(self.times) if later > since and sooner < until]


class WrongAnswerError(RuntimeError):
    """Not the answer that was asked for; its speed means nothing."""


class RefusedError(RuntimeError):
    """The server has no room; a request of an open load then counts as one that kept no limit."""


class Reader:
    """Reads an answer from server-sent events as they come."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._rest = b""
        self._usage: dict[str, Any] = {}

    def feed(self, time: float, chunk: bytes) -> None:
        """What came at this time; it may end within an event."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._event(time, json.loads(line.removeprefix(b"data: ")))

    def end(self, num_prompt: int) -> None:
        """Raises WrongAnswerError where the stream does not count the tokens that were asked for."""
        counted = (self._usage.get("prompt_tokens"), self._usage.get("completion_tokens"))
        check(self._answer, num_prompt, counted)

    def _event(self, time: float, event: dict[str, Any]) -> None:
        self._usage = event.get("usage") or self._usage
        if any(choice.get("text") for choice in event.get("choices", ())):
            self._answer.times.append(time)


def check(answer: Answer, num_prompt: int, counted: tuple[int | None, int | None]) -> None:
    """Raises WrongAnswerError where the counts of prompt and answer are not those of the job, or no text came."""
    if counted != (num_prompt, answer.tokens):
        raise WrongAnswerError(f"{counted} tokens instead of {(num_prompt, answer.tokens)}")
    if not answer.times:
        raise WrongAnswerError("an answer with no text")
    answer.complete = True
