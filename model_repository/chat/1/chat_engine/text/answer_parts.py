"""The text of an answer, taken apart while it grows: content, reasoning, and calls of tools."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from chat_engine.request import Reply, ToolCallDelta
from chat_engine.text.answer_calls import CallReader, State, call_reader
from chat_engine.text.answer_regions import CALLS, CONTENT, REASONING, Found, Regions


class Kind(enum.Flag):
    """What characters of an answer are."""

    NOTHING = 0  # blanks between the parts
    CONTENT = enum.auto()
    REASONING = enum.auto()  # with its markers
    CALL = enum.auto()  # with its markers


class Part(NamedTuple):
    """The next characters of an answer, up to the place `end`: what they are, and what a caller gets of them."""

    kind: Kind
    end: int
    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class AnswerParts:
    """The text of one answer. What comes out does not depend on how it is cut into pieces.

    Blanks between reasoning, content and calls belong to none of them. What looks like a call and is none is content,
    with its markers.

    Attributes:
        call_from: where, behind its marker, what may be a call begins that has not ended; None while there is none.
        num_calls: so far.
    """

    def __init__(self, reply: Reply) -> None:
        self.call_from: int | None = None
        self.num_calls = 0
        self._reply = reply
        self._calls = reads_calls(reply)
        prefix = _prefix(reply)
        self._regions = Regions(reply.format, calls=self._calls, prefix=prefix)
        self._at = 0  # all before it is decided
        self._seen = 0  # and before this, the regions are known
        self._field = CONTENT
        self._strips = False  # whether blanks that come next are left out
        self._tag = ""  # of reasoning that the prompt has opened: the model may write it once more
        self._reader: CallReader | None = None
        self._is_none = False  # whether the newest region of calls has none
        self._begin_behind(prefix)

    def feed(self, text: str) -> list[Part]:
        """What is certain now that this text has come."""
        return list(self._parts(self._regions.feed(text)))

    def finish(self) -> list[Part]:
        """What was held back, at the end of the answer."""
        return [*self._parts(self._regions.finish()), *self._last()]

    def raw(self, begin: int, end: int) -> str:
        """The text between two places."""
        return self._regions.raw(begin, end)

    def _begin_behind(self, prefix: str) -> None:
        tags = self._reply.format.tags
        self._strips = bool(tags and tags[1] in self._reply.prefix and not prefix)
        for found in self._regions.initial:
            self._field = CONTENT if found.kind == "close" else found.field
            self._strips |= found.kind != "text" and found.field == REASONING

    def _parts(self, founds: list[Found]) -> Iterator[Part]:
        steps = {"text": self._text, "open": self._open, "close": self._close}
        for found in founds:
            yield from steps[found.kind](found)
            self._seen = max(self._seen, found.end)

    def _text(self, found: Found) -> Iterator[Part]:
        if found.field == CALLS and self._reader:
            deltas = self._reader.feed(self._regions.raw(found.begin, found.end))
            yield from self._told(self._reader, deltas, found.end)
        elif found.field in (CONTENT, CALLS):
            if found.begin > self._seen and self._drops_marks:
                yield from self._until(found.begin)
            yield from self._plain(found.end, Kind.CONTENT, holds=self._calls)
        elif found.field == REASONING:
            yield from self._plain(found.end, Kind.REASONING, holds=True)
        else:
            yield from self._until(found.end)

    def _open(self, found: Found) -> Iterator[Part]:
        self._field = found.field
        if found.field == CALLS:
            marker = self._regions.raw(found.begin, found.end)
            self._reader = call_reader(self._reply.format, self._reply.tools, marker, self.num_calls)
            self.call_from, self._is_none = found.end, False
            return
        yield from self._until(found.begin)
        yield from self._until(found.end, _kind(found.field))
        self._strips = True
        if found.field == REASONING and found.begin < 0 and self._reply.format.tags:
            self._tag = self._reply.format.tags[0]

    def _close(self, found: Found) -> Iterator[Part]:
        self._field = CONTENT
        if found.field == CALLS:
            yield from self._close_calls(found)
            return
        if self._tag:
            yield from self._plain(found.begin, Kind.REASONING, holds=True, last=True)
        yield from self._until(found.end, _kind(found.field))
        self._strips = True

    def _last(self) -> Iterator[Part]:
        """At the end, blanks that were held back are content, if they follow on some."""
        if not self._strips:
            end = self._seen if self._drops_marks else self._regions.end
            yield from self._plain(end, Kind.CONTENT, holds=False)
        yield from self._until(self._regions.end)

    @property
    def _drops_marks(self) -> bool:
        """Whether what the parser has left out of the content is gone: marks around calls, but not without a call."""
        return self._strips or self._reply.format.shipped

    # Text.

    def _until(self, place: int, kind: Kind = Kind.NOTHING) -> Iterator[Part]:
        """Characters that no caller gets."""
        if place > self._at:
            self._at = place
            yield Part(kind, place)

    def _plain(self, end: int, kind: Kind, *, holds: bool, last: bool = False) -> Iterator[Part]:
        """Characters that a caller gets, up to a place; `holds`: but not the blanks at their end."""
        text = self._regions.raw(self._at, end)
        if self._strips:
            count = self._count_blanks(text, last)
            if count is None:
                return
            yield from self._until(self._at + count, kind & Kind.REASONING)
            text = text[count:]
            self._strips = not text
        if holds:
            text = text.rstrip()
        if text:
            self._at += len(text)
            yield Part(kind, self._at, text)

    def _count_blanks(self, text: str, last: bool) -> int | None:
        """How many characters at the beginning are left out. None: it is open whether they are a tag."""
        begun = text.lstrip()
        if self._tag:
            if not last and len(begun) < len(self._tag) and self._tag.startswith(begun):
                return None
            begun = begun.removeprefix(self._tag).lstrip()
            self._tag = ""
        return len(text) - len(begun)

    # Calls.

    def _told(self, reader: CallReader, deltas: list[ToolCallDelta], end: int) -> Iterator[Part]:
        """What a reader makes of a region up to a place: calls, and from some place on perhaps text."""
        assert self.call_from is not None
        self.num_calls = reader.index
        is_text = reader.state is State.TEXT
        if reader.state is not State.OPEN and not (is_text and reader.text_from < 0):
            self._at = max(self._at, self.call_from + reader.text_from if is_text else end)
            self._strips = True
            yield Part(Kind.CALL, self._at, "", tuple(deltas))
        if is_text:
            self._reader = self.call_from = None
            self._is_none = reader.text_from < 0
            yield from self._plain(end, Kind.CONTENT, holds=True)

    def _close_calls(self, found: Found) -> Iterator[Part]:
        if self._reader:
            deltas = self._reader.close(self._regions.raw(found.begin, found.end))
            yield from self._told(self._reader, deltas, found.begin)
        if self._is_none:
            yield from self._plain(found.end, Kind.CONTENT, holds=True)
            return
        self._reader = self.call_from = None
        self._strips = True
        yield from self._until(found.end, Kind.CALL)


def reads_calls(reply: Reply) -> bool:
    """Whether there can be calls: not without tools."""
    return bool(reply.tools) and reply.format.reads_calls


def _kind(field: str) -> Kind:
    return Kind.REASONING if field == REASONING else Kind.NOTHING


def _prefix(reply: Reply) -> str:
    """What the prompt has written of the answer, as the parser is to see it: of ours, only whether it reasons."""
    tags = reply.format.tags
    if reply.format.shipped:
        return reply.prefix
    if tags is None:
        return ""
    opened, closed = (reply.prefix.rfind(tag) for tag in tags)
    reasons = opened > closed or (reply.format.reasoning_first and closed < 0)
    return tags[0] if reasons else ""
