"""What arrives on the wire becomes token ids, or an `InvalidArgumentError` that names the input and the value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from embedder.checkpoint import Checkpoint
from embedder.errors import InvalidArgumentError

From = TypeVar("From")
To = TypeVar("To")

PARAMETERS = ("truncate_prompt_tokens", "truncation_side")
REQUEST_ID = "id"
"""Triton's own field of a request; its HTTP endpoint `generate` hands it on as a parameter."""
SIDES = ("right", "left")

_SHOWN = 80


@dataclass(frozen=True)
class WireRequest:
    """A request as it came: the contract of `config.pbtxt`, undecoded, an element a row.

    `parameters` are Triton's scalar request parameters: those of `PARAMETERS`, and `id`, which says nothing.
    """

    text: Sequence[bytes] | None = None
    token_ids: Sequence[bytes] | None = None
    dimensions: Sequence[int] | None = None
    parameters: Mapping[str, object] | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """Token ids of each row, and how many components each vector is to have."""

    rows: list[list[int]]
    dimensions: int


@dataclass(frozen=True)
class Cut:
    """How a row that is too long is made shorter: to `limit` tokens, special ones included, off its `side`."""

    limit: int
    side: str


class RequestParser:
    """Parses and checks requests for one model; threads may share it.

    Args:
        checkpoint: tokenizer, vocabulary, longest text and width.
        max_text_bytes: largest element of `text` and `token_ids`.
    """

    def __init__(self, checkpoint: Checkpoint, max_text_bytes: int) -> None:
        self._checkpoint = checkpoint
        self._max_text_bytes = max_text_bytes

    def parse(self, request: WireRequest) -> ParsedRequest:
        """Raises InvalidArgumentError."""
        cut = self._cut(request.parameters or {})
        if (request.text is None) == (request.token_ids is None):
            given = "neither" if request.text is None else "both"
            raise InvalidArgumentError(f"text, token_ids: exactly one is required, {given} given")
        if request.text is not None:
            rows = self._encode(_each_row(self._text, request.text), cut)
            rows = _each_row(self._checked("text"), rows)
        else:
            rows = _each_row(partial(self._token_ids, cut), request.token_ids or ())
        return ParsedRequest(rows, self._dimensions(request.dimensions or ()))

    def _cut(self, parameters: Mapping[str, object]) -> Cut | None:
        for name, value in parameters.items():
            if name not in (*PARAMETERS, REQUEST_ID):
                raise InvalidArgumentError(
                    f"{_name(name)}: unknown parameter (value {_show(value)}); allowed are {', '.join(PARAMETERS)}"
                )
        side = parameters.get("truncation_side") or SIDES[0]
        if side not in SIDES:
            raise InvalidArgumentError(f"truncation_side: must be {' or '.join(SIDES)} (got {_show(side)})")
        limit = parameters.get("truncate_prompt_tokens")
        return None if limit is None else Cut(self._limit(limit), str(side))

    def _limit(self, given: object) -> int:
        """-1 stands for the longest text."""
        longest = self._checkpoint.max_length
        whole = int(given) if isinstance(given, float) and given.is_integer() else given
        if type(whole) is not int or not (whole == -1 or 1 <= whole <= longest):
            raise InvalidArgumentError(
                f"truncate_prompt_tokens: must be -1 or 1 to {longest}, this model's maximum context length "
                f"(got {_show(given)})"
            )
        return longest if whole == -1 else whole

    def _encode(self, texts: list[str], cut: Cut | None) -> list[list[int]]:
        rows: list[list[int]] = [found.ids for found in self._checkpoint.tokenizer.encode_batch_fast(texts)]
        if cut is None:
            return rows
        return [
            self._encode_shorter(text, cut) if len(row) > cut.limit else row
            for text, row in zip(texts, rows, strict=True)
        ]

    def _encode_shorter(self, text: str, cut: Cut) -> list[int]:
        """The special tokens stay: they are put around what is left."""
        tokenizer = self._checkpoint.tokenizer
        special = tokenizer.num_special_tokens_to_add(False)
        if cut.limit <= special:
            raise InvalidArgumentError(
                f"truncate_prompt_tokens: {cut.limit} given; at least {special + 1} are needed, because every text "
                f"has {special} special ones"
            )
        encoding = tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(cut.limit - special, direction=cut.side)
        ids: list[int] = tokenizer.post_process(encoding).ids
        return ids

    def _text(self, raw: bytes) -> str:
        text = self._decode("text", raw)
        if not text:
            raise InvalidArgumentError("text: empty; at least one character is required")
        if "\0" in text:
            raise InvalidArgumentError(
                f"text: holds a NUL character at position {text.index(chr(0))}, which is not allowed"
            )
        return text.lower() if self._checkpoint.lower_case else text

    def _token_ids(self, cut: Cut | None, raw: bytes) -> list[int]:
        ids = _json("token_ids", self._decode("token_ids", raw))
        if not isinstance(ids, list):
            raise InvalidArgumentError(f"token_ids: must be a JSON array of token ids (got {_show(ids)})")
        for value in ids:
            if type(value) is not int:  # a truth value is an int, too
                raise InvalidArgumentError(f"token_ids: must hold integers alone (got {_show(value)})")
        if cut is not None:
            ids = ids[-cut.limit :] if cut.side == "left" else ids[: cut.limit]
        return self._checked("token_ids")(ids)

    def _checked(self, name: str) -> Callable[[list[int]], list[int]]:
        """The check of one row, which gives it back."""
        limit, vocab_size = self._checkpoint.max_length, self._checkpoint.vocab_size

        def check(ids: list[int]) -> list[int]:
            if not ids:
                raise InvalidArgumentError(f"{name}: no tokens; at least one is required")
            if len(ids) > limit:
                raise InvalidArgumentError(
                    f"{name}: {len(ids)} tokens given; this model's maximum context length is {limit} tokens"
                )
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise InvalidArgumentError(
                        f"{name}: token id {_show(token)} is not in the vocabulary; allowed are 0 to {vocab_size - 1}"
                    )
            return ids

        return check

    def _dimensions(self, given: Sequence[int]) -> int:
        width = self._checkpoint.width
        if not len(given):
            return width
        if len(set(given)) > 1:
            raise InvalidArgumentError(
                f"dimensions: {min(given)} and {max(given)} given; the rows of a request all have the same"
            )
        if not 1 <= given[0] <= width:
            raise InvalidArgumentError(f"dimensions: {given[0]} given; allowed are 1 to {width}")
        return given[0]

    def _decode(self, name: str, raw: bytes) -> str:
        if len(raw) > self._max_text_bytes:
            raise InvalidArgumentError(f"{name}: {len(raw)} bytes given; at most {self._max_text_bytes} are allowed")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{name}: not valid UTF-8 at byte {error.start} ({error.reason})") from error


def _each_row(parse: Callable[[From], To], rows: Sequence[From]) -> list[To]:
    """Where there are several rows, an error says which one it is about."""
    if len(rows) == 1:
        return [parse(rows[0])]
    return [_row(index, parse, row) for index, row in enumerate(rows)]


def _row(index: int, parse: Callable[[From], To], row: From) -> To:
    try:
        return parse(row)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"row {index}: {error}") from error


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InvalidArgumentError(f"{name}: nested too deeply") from error
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: not JSON: {error}") from error


def _name(text: str) -> str:
    """A name the caller chose, fit to be shown: it may be long, or hold what no text on the wire can."""
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return text if text.isprintable() else repr(text)[1:-1]


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
