"""Where reasoning, calls and content stand in an answer, found by transformers' parser while the answer grows."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer
from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplate,
    ResponseTemplateField,
    load_response_template,
)

from chat_engine.answer_format import AnswerFormat
from chat_engine.text.token_text import texts_of

CONTENT, REASONING, CALLS = "content", "reasoning_content", "tool_calls"
_REASONING_NAMES = (REASONING, "reasoning", "thinking")  # templates on the Hub have them all


class Found(NamedTuple):
    """What comes next: text of a field, or the marker that opens or closes one.

    `begin` and `end` are places in the answer; those in what the prompt has written of it are below 0.
    """

    kind: Literal["open", "text", "close"]
    field: str
    begin: int
    end: int


class Regions:
    """The fields of one answer. Possible beginnings of markers are held back.

    transformers' parser tells what it found, but not where: the places are found again with its own expressions. It
    also parses a field when that ends, and raises where the model wrote nonsense; so here every field is plain text,
    and those who take the calls parse them. Text in which no marker can begin is not given to it before more comes: it
    costs much more than making text of a token.

    Args:
        answer_format: the model's.
        calls: whether calls are looked for.
        prefix: what the prompt has written of the answer.
    """

    def __init__(self, answer_format: AnswerFormat, *, calls: bool, prefix: str) -> None:
        self._template = region_template(answer_format, calls)
        self._parser = ResponseParser(self._template, prefix=prefix)
        self._text = self._template.truncate_past_last_anchor(prefix) if prefix else ""
        self._offset = len(self._text)
        self._place = 0  # up to where the parser has told
        self._ahead = ""  # what it has not got yet, though it is told: in the same field, and no marker
        self._field = self._template.implicit
        self._in_text = False  # whether the newest thing is text of the field
        self._begins = _begins(answer_format, calls)
        self.initial = self._located(self._parser.initial_events)

    def feed(self, text: str) -> list[Found]:
        """What is certain now that this text has come."""
        holds = self._place + len(self._ahead) < len(self._text)
        self._text += text
        if not holds and self._field and self._is_plain(text):
            self._ahead += text
            end = len(self._text) - self._offset
            return [Found("text", _role(self._field), end - len(text), end)]
        return self._fed(text)

    def finish(self) -> list[Found]:
        """What was held back."""
        return self._fed("") + self._located(self._parser.finalize()[1])

    @property
    def end(self) -> int:
        """How long the answer is."""
        return len(self._text) - self._offset

    def raw(self, begin: int, end: int) -> str:
        """The answer between two places."""
        return self._text[begin + self._offset : end + self._offset]

    def _is_plain(self, text: str) -> bool:
        """Whether no marker begins in it: for sure only behind text of the same field."""
        begins = self._begins.get(self._field) if self._place else None
        return begins is not None and self._in_text and begins.isdisjoint(text)

    def _fed(self, text: str) -> list[Found]:
        text, self._ahead = self._ahead + text, ""
        return self._located(self._parser.feed(text))

    def _located(self, events: list[dict[str, Any]]) -> list[Found]:
        return [found for event in events for found in self._one(event)]

    def _one(self, event: dict[str, Any]) -> list[Found]:
        name, implicit = event["field"], self._template.implicit
        field = self._template.fields[name]
        if event["type"] == "region_open":
            if name == implicit:
                return []
            match = field.open_re.search(self._text, self._place)  # what it skips, the parser has dropped
            self._field = name
            return [self._found("open", name, match.start(), match.end())]
        if event["type"] == "region_chunk":
            if name == implicit:
                self._skip_closes(event["text"])
            return [self._found("text", name, self._place, self._place + len(event["text"]))]
        self._field = implicit
        if name == implicit:
            return []
        match = field.close_re.match(self._text, self._place) if field.close_re else None
        return [self._found("close", name, self._place, match.end() if match else self._place)]

    def _skip_closes(self, text: str) -> None:
        """Over the ends of an implicit field that was empty: the parser does not tell of them."""
        close = self._template.fields[self._template.implicit].close_re if self._template.implicit else None
        while close and (match := close.match(self._text, self._place)) and match.end() > self._place:
            self._place = match.end()
        assert self._text.startswith(text, self._place)

    def _found(self, kind: Literal["open", "text", "close"], field: str, begin: int, end: int) -> Found:
        self._place = end
        self._in_text = kind == "text"
        return Found(kind, _role(field), begin - self._offset, end - self._offset)


def _role(field: str) -> str:
    return REASONING if field in _REASONING_NAMES else field


@lru_cache(64)
def _begins(answer_format: AnswerFormat, calls: bool) -> dict[str | None, frozenset[str]]:
    """With what characters markers begin behind text of a field, where that is known.

    In formats of ours, what has no literals can only stand at the beginning of an answer.
    """
    template = region_template(answer_format, calls)
    ours = not answer_format.shipped
    known: dict[str | None, frozenset[str]] = {}
    for name, field in template.fields.items():
        ends = [(field.close_re, field.close_literals)]
        if name == template.implicit:
            ends += [(other.open_re, other.open_literals) for other in template.fields.values()]
        if name != CALLS and all(expression is None or ours or literals for expression, literals in ends):
            known[name] = frozenset(literal[0] for _, literals in ends for literal in literals or ())
    return known


@lru_cache(64)
def region_template(answer_format: AnswerFormat, calls: bool) -> ResponseTemplate:
    """The template of a format with all fields as plain text, and calls that open at literal markers if they have any.

    Literals are found with their last character; an expression only with the next one, since it might go on.
    """
    spec = dict(answer_format.template)
    fields = {name: dict(field) for name, field in spec["fields"].items()}
    syntax = answer_format.call
    if not calls:
        fields.pop(CALLS, None)
        if syntax:
            fields[CONTENT].pop("close", None)  # marks around calls
    elif syntax:
        if syntax.opens:
            fields[CALLS].pop("open_pattern", None)
            fields[CALLS]["open"] = list(syntax.opens)
        if syntax.closes:
            fields[CALLS].pop("close_pattern", None)
            fields[CALLS]["close"] = list(syntax.closes)
        for name in ("content", "transform", "transform_each"):
            fields[CALLS].pop(name, None)
    template = load_response_template({**spec, "fields": fields})
    template.fields = {name: _plain(field) for name, field in template.fields.items()}
    return template


def _plain(field: ResponseTemplateField) -> ResponseTemplateField:
    """Text as it stands, however often, or not at all."""
    return replace(
        field,
        content="text",
        content_args={"strip": False},
        transform=None,
        transform_each=False,
        repeats=True,
        join=None,
        optional=True,
    )


@lru_cache(64)
def call_template(answer_format: AnswerFormat) -> ResponseTemplate:
    """The template of a format with nothing but its calls, to parse the text of one."""
    template = load_response_template(dict(answer_format.template))
    template.fields = {CALLS: replace(template.fields[CALLS], optional=True)}
    template.implicit = None
    template.defaults = {}
    return template


@lru_cache(64)
def marker_ids(tokenizer: Tokenizer, answer_format: AnswerFormat, calls: bool) -> frozenset[int]:
    """The special tokens that are markers of the format, or parts of them."""
    template = region_template(answer_format, calls)
    anchors = [anchor for field in template.fields.values() for anchor in (field.open_re, field.close_re) if anchor]
    inner = call_template(answer_format).fields[CALLS] if calls else None
    if inner:
        anchors += [anchor for anchor in (inner.open_re, inner.close_re) if anchor]
    written = "\n".join([*(anchor.pattern for anchor in anchors), repr(inner.content_args) if inner else ""])
    return frozenset(
        token_id
        for token_id, content in texts_of(tokenizer).special.items()
        if content in written or _escaped(content) in written
    )


def _escaped(content: str) -> str:
    """As in an expression."""
    return "".join("\\" + char if char in r"\.^$*+?{}[]|()" else char for char in content)
