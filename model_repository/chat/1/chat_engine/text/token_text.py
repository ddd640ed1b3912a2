"""What each token of a tokenizer stands for: its bytes, as the tokenizer's own decoder has them.

`tokenizers` decodes whole lists of tokens. An answer grows by one token at a time, so that here its decoder's rules are
applied to each token alone, once; what concerns the whole text is left to `text_decoder`. Two things differ from
`tokenizers`:

- Added tokens are their own characters. A byte-level decoder takes `ö` for the byte F6 wherever it stands, also where
  it is the name of an added token; and U+2581 in the name of a special token is no blank. Only a token that is an
  ordinary one of the vocabulary, too, is what the decoder makes of it, as the blanks among Gemma's added tokens.
- Bytes are bytes. `tokenizers` turns a whole run of byte tokens (`<0xF0>`) into U+FFFD when one is wrong or missing, so
  that each new one may change all before it. Here broken UTF-8 is replaced as the Unicode standard recommends, and as
  Python and byte-level decoders do: one U+FFFD for each maximal part of a character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders

_KEPT = 8  # tokenizers, as many as the model `tokenizer` keeps
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

_Spec = dict[str, Any]
_Step = Callable[[str], "str | bytes"]
"""From a token to what becomes of it. Bytes are final."""


class Piece(NamedTuple):
    """The bytes of a token: as the first of a text, or behind others; besides, if another follows, or if none does."""

    first: bytes
    later: bytes
    if_followed: bytes = b""
    if_last: bytes = b""


class Strip(NamedTuple):
    """Up to `start` of this character are cut off the beginning of the text, and up to `stop` off its end."""

    char: str
    start: int
    stop: int


@dataclass
class Rules:
    """A tokenizer's decoder.

    Attributes:
        first, later: what a token goes through on its own, as the first of a text or behind others.
        between: what comes between an added token and what is before it.
        strips: what is cut off the whole text.
        suffix: a mark at the ends of words; a blank, but at the text's end nothing. Empty: none.
        folds: whether a token that repeats the one before it has no text (CTC).
        byte_level: whether tokens are spelled in the characters that stand for bytes.
        marks: tokens that mean something to the decoder even where they are added ones.
    """

    first: list[_Step] = field(default_factory=list)
    later: list[_Step] = field(default_factory=list)
    between: Callable[[str], str] = lambda _: ""
    strips: list[Strip] = field(default_factory=list)
    suffix: str = ""
    folds: bool = False
    byte_level: bool = False
    marks: frozenset[str] = frozenset()

    def add(self, later: _Step, first: _Step | None = None) -> None:
        """One more step."""
        self.first.append(first or later)
        self.later.append(later)


class TokenTexts(dict[int, "Piece | None"]):
    """The piece of each token id, made when first asked for; None for an id the tokenizer has no token for.

    Attributes:
        tokenizer: must not change any more.
        special: the special tokens' texts.
        rules: None if the decoder is of a kind not known here; then pieces are only what `tokenizers` makes of single
            tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.rules = _rules(tokenizer)
        self._added = tokenizer.get_added_tokens_decoder()
        self.special = {token_id: token.content for token_id, token in self._added.items() if token.special}

    def __missing__(self, token_id: int) -> Piece | None:
        name = self.tokenizer.id_to_token(token_id)
        piece = self[token_id] = None if name is None else self._piece(token_id, name)
        return piece

    def name(self, token_id: int) -> bytes:
        """The bytes of a token behind others; none for an unknown id."""
        piece = self[token_id]
        return piece.later + piece.if_followed if piece else b""

    def _piece(self, token_id: int, name: str) -> Piece:
        rules = self.rules
        if self._is_itself(token_id, name):
            return Piece(name.encode(), ((rules.between(name) if rules else "") + name).encode())
        if rules is None:
            alone = self.tokenizer.decode([token_id], skip_special_tokens=False).encode()
            return Piece(alone, alone)
        if rules.suffix:
            word, mark, rest = name.partition(rules.suffix)
            rest = mark + rest
            ends = (rest.replace(rules.suffix, blank).encode() for blank in (" ", ""))
            return Piece(word.encode(), word.encode(), *ends)
        return Piece(_run(rules.first, name), _run(rules.later, name))

    def _is_itself(self, token_id: int, name: str) -> bool:
        added = self._added.get(token_id)
        if added is None or (self.rules and name in self.rules.marks):
            return False
        if added.special or (self.rules and self.rules.byte_level):
            return True
        return bool(self.tokenizer.model.id_to_token(token_id) != name)


@lru_cache(_KEPT)
def texts_of(tokenizer: Tokenizer) -> TokenTexts:
    """The pieces of a tokenizer, shared by all who ask for them."""
    return TokenTexts(tokenizer)


def _run(steps: list[_Step], name: str) -> bytes:
    piece: str | bytes = name
    for step in steps:
        if isinstance(piece, bytes):
            break
        piece = step(piece)
    return piece if isinstance(piece, bytes) else piece.encode()


# Reading the decoder.


def _rules(tokenizer: Tokenizer) -> Rules | None:
    """None where the decoder is, or has, something unknown."""
    if tokenizer.decoder is None:
        return _blanks_between()
    stages = list(_stages(json.loads(tokenizer.decoder.__getstate__())))
    match [stage for stage in stages if stage["type"] != "Fuse"]:
        case [{"type": "BPEDecoder", "suffix": suffix}]:
            return Rules(suffix=suffix)
        case [{"type": "CTC"} as stage]:
            return _ctc(stage)
    return _sequence(stages)


def _stages(spec: _Spec) -> Iterator[_Spec]:
    """The decoders of a sequence, and of those within it."""
    if spec["type"] == "Sequence":
        for inner in spec["decoders"]:
            yield from _stages(inner)
    else:
        yield spec


def _sequence(stages: list[_Spec]) -> Rules | None:
    """Decoders behind one another: before `Fuse` or `ByteLevel` they see single tokens, after it the whole text."""
    rules = Rules()
    seen: set[str] = set()
    for stage in stages:
        kind, whole, bytes_made = stage["type"], bool(seen & {"Fuse", "ByteLevel"}), bool(seen & _MAKE_BYTES)
        if kind == "Strip" and whole:
            rules.strips.append(Strip(stage["content"], stage["start"], stage["stop"]))
        elif kind == "Replace" and (not whole or (_is_character(stage) and not seen & {"Strip", "ByteLevel"})):
            rules.add(_replace(stage))
        elif kind == "Metaspace" and not whole:
            rules.add(*_by_library(decoders.Metaspace(stage["replacement"], stage["prepend_scheme"])))
        elif kind == "WordPiece" and not whole and not bytes_made:
            decoder = decoders.WordPiece(stage["prefix"], stage["cleanup"])
            rules.add(*_by_library(decoder))
            rules.between = _blank_of(decoder)
        elif kind == "ByteFallback" and not whole:
            rules.add(_fallback_byte)
        elif kind == "ByteLevel" and not whole and not bytes_made:
            rules.add(_table_bytes)
            rules.byte_level = True
        elif kind != "Fuse":
            return None
        seen.add(kind)
    return rules


_MAKE_BYTES = {"ByteFallback", "ByteLevel"}


def _by_library(decoder: decoders.Decoder) -> tuple[_Step, _Step]:
    """`tokenizers` decodes the token behind one without a text, and alone."""
    return (lambda text: decoder.decode(["", text])), (lambda text: decoder.decode([text]))


def _replace(stage: _Spec) -> _Step:
    kind, pattern = next(iter(stage["pattern"].items()))
    decoder = decoders.Replace(Regex(pattern) if kind == "Regex" else pattern, stage["content"])
    return lambda text: decoder.decode([text])


def _is_character(stage: _Spec) -> bool:
    """Whether single characters are replaced, so that it makes no difference where tokens end."""
    return len(stage["pattern"].get("String", "")) == 1


def _blank_of(decoder: decoders.Decoder) -> Callable[[str], str]:
    """The blank that stands between words, unless the decoder's cleanup takes it off (before a full stop)."""
    return lambda content: " " if decoder.decode(["", content]).startswith(" ") else ""


def _ctc(stage: _Spec) -> Rules:
    pad, delimiter = stage["pad_token"], stage["word_delimiter_token"]
    rules = Rules(folds=True, marks=frozenset({pad, delimiter}))
    rules.add(*_by_library(decoders.CTC(pad, delimiter, stage["cleanup"])))
    return rules


def _blanks_between() -> Rules:
    """Without a decoder there is a blank between any two tokens."""
    rules = Rules(between=lambda _: " ")
    rules.add(lambda text: " " + text, first=lambda text: text)
    return rules


def _fallback_byte(text: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text


def _table_bytes(text: str) -> str | bytes:
    table = _byte_of_char()
    return bytes(table[char] for char in text) if all(char in table for char in text) else text


@cache
def _byte_of_char() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE vocabularies (GPT-2), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
