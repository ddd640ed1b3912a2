"""The error family, and its form on the wire. Each boundary (Triton, the gateway, the client) maps it once.

A sentence says what was wrong, with which value, and what is allowed. It never shows a path, an address, a traceback or
another user's text. What a program needs to know of an error is data: the class with its code, the field, the row.

Triton keeps nothing but a text of an error in a stream and between models, so the data stands at the end of it:

    row 1: messages[0].content: holds a NUL character at position 3 [code=invalid_value field=messages[0].content row=1]

`field` and `row` are there where the error has them. A field is percent-encoded (RFC 3986) but for brackets, dots and
the unreserved characters, so it holds no space, and what follows the last ` [code=` is always the data.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import quote, unquote

_DATA = " [code="
_KEPT_IN_FIELDS = "[]."


class ChatError(Exception):
    """Base of everything a request can end with instead of an answer.

    Args:
        sentence: for people; without the names of field and row.
        field: of the request, as `messages[0].content`.
        row: of a request that has several, from 0.
    """

    code: ClassVar[str] = "internal_error"
    """A stable word for programs."""

    def __init__(self, sentence: str, *, field: str | None = None, row: int | None = None) -> None:
        super().__init__(sentence, field, row)
        self.sentence = sentence
        self.field = field
        self.row = row

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}: "
        field = "" if self.field is None else f"{self.field}: "
        return f"{row}{field}{self.sentence}"

    def in_row(self, row: int) -> ChatError:
        """The same error of a request with several rows."""
        return type(self)(self.sentence, field=self.field, row=row)


class InvalidArgumentError(ChatError):
    """The caller's mistake: a bad, unknown or missing field."""

    code = "invalid_value"


class UnknownModelError(InvalidArgumentError):
    """No model has the name that was asked for."""

    code = "model_not_found"


class ContextLengthError(InvalidArgumentError):
    """Prompt, or prompt and requested tokens together, exceed the context."""

    code = "context_length_exceeded"


class OverloadedError(ChatError):
    """The engine has no room; another try later may succeed."""

    code = "overloaded"


class DrainingError(OverloadedError):
    """The engine is shutting down and takes nothing new."""

    code = "stopping"


class RequestCancelledError(ChatError):
    """The caller has cancelled, or is gone."""

    code = "cancelled"


class EngineFailedError(ChatError):
    """The engine is broken; what was in flight is lost and the process must restart."""

    code = "engine_failed"


class NotComputedError(ChatError):
    """The model failed on this request alone; the engine goes on, and another try may fail the same way."""

    code = "not_computed"


class ConfigError(Exception):
    """The operator's mistake: a setting that cannot work. Raised while loading, never while serving."""


class UnsupportedModelError(ConfigError):
    """The checkpoint needs something this engine does not do."""


FAMILY: tuple[type[ChatError], ...] = (
    ChatError, InvalidArgumentError, UnknownModelError, ContextLengthError, OverloadedError, DrainingError,
    RequestCancelledError, EngineFailedError, NotComputedError,
)  # fmt: skip


def field_name(*parts: str | int) -> str:
    """A place in a request: `("messages", 0, "content")` is `messages[0].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def to_wire(error: ChatError) -> str:
    """The text that travels, see the top of this file. `triton_chat.errors` reads it at the other end."""
    field = "" if error.field is None else f" field={quote(error.field, safe=_KEPT_IN_FIELDS)}"
    row = "" if error.row is None else f" row={error.row}"
    return f"{error}{_DATA}{error.code}{field}{row}]"


def from_wire(text: str) -> ChatError | None:
    """The error that `to_wire` has written; None for a text of somebody else."""
    shown, found, data = text.rpartition(_DATA)
    code, *pairs = data.removesuffix("]").split(" ")
    kind = next((kind for kind in FAMILY if kind.code == code), None)
    if not found or not data.endswith("]") or kind is None:
        return None
    values = dict(pair.partition("=")[::2] for pair in pairs)
    field = unquote(values["field"]) if "field" in values else None
    row = int(values["row"]) if values.get("row", "").isdecimal() else None
    without_place = shown.removeprefix("" if row is None else f"row {row}: ")
    return kind(without_place.removeprefix("" if field is None else f"{field}: "), field=field, row=row)
