"""What arrives on the wire becomes token ids, or an `InvalidArgumentError` that names the input and the value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from chat_engine.errors import ContextLengthError, InvalidArgumentError
from chat_engine.reading.checks import at_most, check_text, check_token_id, decode, read_json, show, unknown
from embedder.checkpoint import Checkpoint

From = TypeVar("From")
To = TypeVar("To")

PARAMETERS = ("truncate_prompt_tokens", "truncation_side")
REQUEST_ID = "id"
"""Triton's own field of a request; its HTTP endpoint `generate` hands it on as a parameter."""
SIDES = ("right", "left")


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
            raise InvalidArgumentError(f"exactly one of text and token_ids is required, {given} given")
        if request.text is not None:
            rows = self._encode(_each_row(self._text, request.text), cut)
            rows = _each_row(self._checked("text"), rows)
        else:
            rows = _each_row(partial(self._token_ids, cut), request.token_ids or ())
        return ParsedRequest(rows, self._dimensions(request.dimensions or ()))

    def _cut(self, parameters: Mapping[str, object]) -> Cut | None:
        for name, value in parameters.items():
            if name not in (*PARAMETERS, REQUEST_ID):
                raise unknown(name, value, PARAMETERS)
        side = parameters.get("truncation_side") or SIDES[0]
        if side not in SIDES:
            raise InvalidArgumentError(f"must be {' or '.join(SIDES)} (got {show(side)})", field="truncation_side")
        limit = parameters.get("truncate_prompt_tokens")
        return None if limit is None else Cut(self._limit(limit), str(side))

    def _limit(self, given: object) -> int:
        """-1 stands for the longest text."""
        longest = self._checkpoint.max_length
        whole = int(given) if isinstance(given, float) and given.is_integer() else given
        if type(whole) is not int or not (whole == -1 or 1 <= whole <= longest):
            raise InvalidArgumentError(
                f"must be -1 or 1 to {longest}, this model's maximum context length (got {show(given)})",
                field="truncate_prompt_tokens",
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
                f"{cut.limit} given; at least {special + 1} are required: every text has {special} special tokens",
                field="truncate_prompt_tokens",
            )
        encoding = tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(cut.limit - special, direction=cut.side)
        ids: list[int] = tokenizer.post_process(encoding).ids
        return ids

    def _text(self, raw: bytes) -> str:
        text = self._decode("text", raw)
        if not text:
            raise InvalidArgumentError("empty; at least one character is required", field="text")
        check_text("text", text)
        return text.lower() if self._checkpoint.lower_case else text

    def _token_ids(self, cut: Cut | None, raw: bytes) -> list[int]:
        ids = read_json("token_ids", self._decode("token_ids", raw))
        if not isinstance(ids, list):
            raise InvalidArgumentError(f"must be a JSON array of token ids (got {show(ids)})", field="token_ids")
        for value in ids:
            if type(value) is not int:  # a truth value is an int, too
                raise InvalidArgumentError(f"must contain only integers (got {show(value)})", field="token_ids")
        if cut is not None:
            ids = ids[-cut.limit :] if cut.side == "left" else ids[: cut.limit]
        return self._checked("token_ids")(ids)

    def _checked(self, name: str) -> Callable[[list[int]], list[int]]:
        """The check of one row, which gives it back."""
        limit, vocab_size = self._checkpoint.max_length, self._checkpoint.vocab_size

        def check(ids: list[int]) -> list[int]:
            if not ids:
                raise InvalidArgumentError("no tokens; at least one is required", field=name)
            if len(ids) > limit:
                raise ContextLengthError(
                    f"{len(ids)} tokens given; this model's maximum context length is {limit} tokens", field=name
                )
            for token in ids:
                check_token_id(name, token, vocab_size)
            return ids

        return check

    def _dimensions(self, given: Sequence[int]) -> int:
        width = self._checkpoint.width
        if not len(given):
            return width
        if len(set(given)) > 1:
            raise InvalidArgumentError(
                f"{min(given)} and {max(given)} given; all rows of a request must have the same value",
                field="dimensions",
            )
        if not 1 <= given[0] <= width:
            raise InvalidArgumentError(f"{given[0]} given; allowed are 1 to {width}", field="dimensions")
        return given[0]

    def _decode(self, name: str, raw: bytes) -> str:
        at_most(name, len(raw), self._max_text_bytes, "bytes")
        return decode(name, raw)


def _each_row(parse: Callable[[From], To], rows: Sequence[From]) -> list[To]:
    """Where there are several rows, an error says which one it is about."""
    if len(rows) == 1:
        return [parse(rows[0])]
    return [_row(index, parse, row) for index, row in enumerate(rows)]


def _row(index: int, parse: Callable[[From], To], row: From) -> To:
    try:
        return parse(row)
    except InvalidArgumentError as error:
        raise error.in_row(index) from error
