"""An answer that is more than text: token ids come in; content, reasoning and calls of tools come out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from chat_engine.request import Reply, TokenLogprobs, ToolCallDelta
from chat_engine.text.answer_parts import AnswerParts, Kind, Part, reads_calls
from chat_engine.text.answer_regions import marker_ids
from chat_engine.text.detokenizer import TextStream
from chat_engine.text.stop_strings import Places, StopStrings
from chat_engine.text.token_text import texts_of


@dataclass(frozen=True)
class Said:
    """What a caller gets more."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class CallOpening:
    """A call has begun; `text` is what there is of it already, behind its marker."""

    text: str = ""


def answer_text(
    tokenizer: Tokenizer,
    reply: Reply | None,
    prompt_ids: tuple[int, ...] = (),
    stop: tuple[str, ...] = (),
    *,
    skip_special_tokens: bool = True,
    echo: bool = False,
    places: Places | None = None,
) -> AnswerText | PlainText:
    """For one answer: taken apart where there is a `reply`, else plain. For the rest see `TextStream`."""
    how: dict[str, Any] = {"skip_special_tokens": skip_special_tokens, "echo": echo, "places": places}
    if reply is None:
        return PlainText(TextStream(tokenizer, prompt_ids, stop, **how))
    return AnswerText(tokenizer, reply, prompt_ids, stop, **how)


class PlainText:
    """An answer that is text and nothing else, with the calls of `AnswerText`."""

    opening: None = None
    num_calls = 0
    num_reasoning = 0

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._stream.stopped

    def push(self, token_id: int, may_stop: bool = True, logprobs: TokenLogprobs | None = None) -> Said:
        """See `AnswerText`."""
        return Said(self._stream.push(token_id, may_stop), logprobs=(logprobs,) if logprobs else ())

    def close(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Said:
        """See `AnswerText`."""
        return Said(self._stream.close(token_id), logprobs=(logprobs,) if logprobs else ())

    def flush(self) -> Said:
        """See `AnswerText`."""
        return Said(self._stream.flush())


@dataclass
class _Token:
    """A token whose text is in the answer from `begin` to `end`, of which not all is decided."""

    token_id: int
    begin: int
    end: int
    logprobs: TokenLogprobs | None
    kind: Kind = Kind.NOTHING


class AnswerText:
    """The content, the reasoning and the calls of one answer, token by token.

    The same calls as `TextStream` has. Stop strings apply to the content. A token belongs to the content if some of its
    text does; one without text (a hidden special token, a part of a character) goes with what follows, or at the end
    with what came before.

    Args:
        tokenizer: the fast tokenizer.
        reply: how to read the answer.
        prompt_ids: the prompt; only its ends matter.
        stop: strings that end the answer.
        skip_special_tokens: whether special tokens are hidden, unless they are markers.
        echo: see `TextStream`.
        places: where a stop string may end the content; None: anywhere.

    Attributes:
        opening: where the call has begun that is being written; None while there is none. A new one is a new object.
        num_reasoning: tokens of the reasoning so far, with its markers.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reply: Reply,
        prompt_ids: tuple[int, ...] = (),
        stop: tuple[str, ...] = (),
        *,
        skip_special_tokens: bool = True,
        echo: bool = False,
        places: Places | None = None,
    ) -> None:
        shown = marker_ids(tokenizer, reply.format, reads_calls(reply))
        self.opening: CallOpening | None = None
        self.num_reasoning = 0
        self._stream = TextStream(
            tokenizer, prompt_ids, skip_special_tokens=skip_special_tokens, echo=echo, shown=shown
        )
        self._parts = AnswerParts(reply)
        self._stops = _ContentStops(stop, places) if stop else None
        self._special = texts_of(tokenizer).special
        self._shown = shown if skip_special_tokens else frozenset(self._special)
        self._call_from: int | None = None
        self._tokens: deque[_Token] = deque()  # those of which not all is decided
        self._at = 0  # up to where all is
        self._kind = Kind.CONTENT  # of what was decided last

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._stops is not None and self._stops.stopped

    @property
    def num_calls(self) -> int:
        """Calls so far."""
        return self._parts.num_calls

    def push(self, token_id: int, may_stop: bool = True, logprobs: TokenLogprobs | None = None) -> Said:
        """What is certain now that this token has come; `may_stop` as in `TextStream`."""
        begin = self._stream.length
        if self._stops:
            hidden = "" if token_id in self._shown else self._special.get(token_id, "")
            self._stops.note(begin, may_stop, hidden)
        text = self._stream.push(token_id)
        self._tokens.append(_Token(token_id, begin, self._stream.length, logprobs))
        return self._said(self._fed(text))

    def close(self, token_id: int, logprobs: TokenLogprobs | None = None) -> Said:
        """What was held back, at the end by a token that is no part of the answer; it may complete a stop string."""
        end = self._stream.length
        self._tokens.append(_Token(token_id, end, end, logprobs))
        return self._end(self._special.get(token_id, ""))

    def flush(self) -> Said:
        """What was held back, at the end of an answer that no stop string ended. It may complete one."""
        return self._end("")

    def _fed(self, text: str) -> list[Part]:
        if not text:
            return []
        parts = self._parts.feed(text)
        self._note_opening()
        return parts

    def _note_opening(self) -> None:
        """Looks whether a call has begun or ended, before its tokens are decided."""
        begin = self._parts.call_from
        if begin == self._call_from:
            return
        self._call_from, self.opening = begin, None
        if begin is not None:
            self.opening = CallOpening(self._parts.raw(begin, self._stream.length))

    def _end(self, hidden: str) -> Said:
        parts = [*self._fed(self._stream.flush()), *self._parts.finish()]
        said = self._said(parts)
        text = said.text
        if self._stops and not self.stopped:
            text += self._stops.end(hidden if self._kind is Kind.CONTENT else "")
        self.opening = None
        return Said(text, said.reasoning, said.calls, (*said.logprobs, *self._rest()))

    def _said(self, parts: list[Part]) -> Said:
        text, reasoning = "", ""
        calls: list[ToolCallDelta] = []
        logprobs: list[TokenLogprobs] = []
        for part in parts:
            if part.kind is Kind.CONTENT:
                text += self._stops.push(part.text, self._at) if self._stops else part.text
            elif part.kind is Kind.REASONING:
                reasoning += part.text
            calls += part.calls
            logprobs += self._decide(part)
            if self.stopped:
                break
        if self._stops and not self.stopped and self._kind is Kind.CONTENT:
            text += self._stops.push("", self._at)
        if self.stopped:
            logprobs += self._rest()
        return Said(text, reasoning, tuple(calls), tuple(logprobs))

    def _decide(self, part: Part) -> list[TokenLogprobs]:
        """Says of the tokens up to a place what they are. Gives those of the content that are complete."""
        self._at, self._kind = part.end, part.kind
        decided: list[TokenLogprobs] = []
        while self._tokens and self._tokens[0].begin < part.end:
            token = self._tokens[0]
            token.kind = part.kind if token.kind is Kind.NOTHING else token.kind | part.kind
            if token.end > part.end:
                break
            decided += self._concluded(self._tokens.popleft())
        return decided

    def _rest(self) -> list[TokenLogprobs]:
        """Those of the content among the tokens that are left at the end."""
        tokens, self._tokens = self._tokens, deque()
        return [entry for token in tokens for entry in self._concluded(token)]

    def _concluded(self, token: _Token) -> list[TokenLogprobs]:
        kind = self._kind if token.kind is Kind.NOTHING else token.kind
        if kind & Kind.CONTENT:
            return [token.logprobs] if token.logprobs else []
        if kind & Kind.REASONING:
            self.num_reasoning += 1
        return []


class _ContentStops:
    """Stop strings in the content of an answer, which comes later than its tokens do.

    Attributes:
        stopped: whether one was completed.
    """

    def __init__(self, stop: tuple[str, ...], places: Places | None) -> None:
        self._stops = StopStrings(stop, places)
        self._free: int | None = None  # from where on one may be completed
        self._hidden: deque[tuple[int, str, bool]] = deque()  # where it stands, its text, and whether it may

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def note(self, place: int, may_stop: bool, hidden: str) -> None:
        """Takes in a token: where its text begins, and its text where that does not show."""
        if may_stop and self._free is None:
            self._free = place
        if hidden:
            self._hidden.append((place, hidden, may_stop))

    def push(self, text: str, begin: int) -> str:
        """What may be shown of the content that begins at a place, with what is hidden in it and right behind it."""
        shown = ""
        while self._hidden and self._hidden[0][0] <= begin + len(text) and not self.stopped:
            place, hidden, may_stop = self._hidden.popleft()
            if place >= begin:  # else it stood in something else
                shown += self._push(text[: place - begin], begin)
                text, begin = text[place - begin :], place
                if not self.stopped:
                    shown += self._stops.push(hidden, hidden=True, may_stop=may_stop)
        return shown if self.stopped else shown + self._push(text, begin)

    def end(self, hidden: str) -> str:
        """What was held back, at the end by a token of that text."""
        text = self._stops.push(hidden, hidden=True)
        return text if self.stopped else text + self._stops.flush()

    def _push(self, text: str, begin: int) -> str:
        """Up to where a stop string may not yet be completed, and from there on."""
        bound = len(text) if self._free is None else min(max(self._free - begin, 0), len(text))
        shown = self._stops.push(text[:bound], may_stop=False) if bound else ""
        return shown + (self._stops.push(text[bound:]) if text[bound:] else "")
