"""Token ids to text, one token at a time. A token costs the same however long the text is."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from chat_engine.text.token_text import Piece, Rules, Strip, TokenTexts

_MAX_CHARACTER = 4  # bytes
# For decoders of unknown kinds: enough tokens to know whether a new one begins with a space, and how long to wait for
# the rest of a character.
_CONTEXT_TOKENS = 6
_MAX_INCOMPLETE = 3
_MAX_PENDING = 16
_REPLACEMENT = "\ufffd"


class Decoder(Protocol):
    """A text that grows: what comes out of `feed` and `end` is the text of all ids at once."""

    def skip(self, ids: Sequence[int]) -> None:
        """Goes over the first tokens, whose text is not wanted.

        A character that they leave incomplete comes out with what completes it, or else as U+FFFD with what follows.
        """

    def drop_incomplete(self) -> None:
        """A character that is incomplete now comes out only if it is completed."""

    def feed(self, token_id: int) -> str:
        """The text that is final now that this token has come."""

    def end(self) -> str:
        """What was waiting for more."""


def text_decoder(texts: TokenTexts, skip_special_tokens: bool, shown: frozenset[int] = frozenset()) -> Decoder:
    """A new, empty text. Special tokens in `shown` are never skipped."""
    if texts.rules is None:
        return WindowDecoder(texts, skip_special_tokens, shown)
    return TextDecoder(texts, texts.rules, skip_special_tokens, shown)


class TextDecoder:
    """Joins the pieces of tokens by the rules of their decoder."""

    def __init__(
        self, texts: TokenTexts, rules: Rules, skip_special_tokens: bool, shown: frozenset[int] = frozenset()
    ) -> None:
        self._texts = texts
        self._folds = rules.folds
        self._skip_special = skip_special_tokens
        self._shown = shown
        self._reach = _MAX_CHARACTER * (1 + sum(strip.stop for strip in rules.strips))  # bytes that may be held back
        self._strips = [_Stripped(strip) for strip in rules.strips]
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False  # whether there was a token, if one without text
        self._previous = -1
        self._if_followed = b""
        self._if_last = b""
        self._foreign = b""  # the beginning of a character that shows only if it is completed

    def skip(self, ids: Sequence[int]) -> None:
        """See `Decoder`. Only the tokens at both ends can matter: those between are left out.

        Bytes before a gap do no harm: what is held back depends on the last few alone.
        """
        end = self._end_of(ids)
        for token_id in islice(ids, end):
            if self._begun and all(strip.begun for strip in self._strips):
                break
            self.feed(token_id)
        for token_id in ids[end:]:
            self.feed(token_id)

    def drop_incomplete(self) -> None:
        """See `Decoder`."""
        self._foreign = self._utf8.getstate()[0]

    def feed(self, token_id: int) -> str:
        """See `Decoder`."""
        piece = self._piece(token_id)
        if piece is None or (self._folds and token_id == self._previous):
            return ""
        raw = self._if_followed + (piece.later if self._begun else piece.first)
        self._begun, self._previous = True, token_id
        self._if_followed, self._if_last = piece.if_followed, piece.if_last
        return self._text(raw) if raw else ""

    def end(self) -> str:
        """See `Decoder`."""
        return self._text(self._if_last, final=True)

    def _piece(self, token_id: int) -> Piece | None:
        hidden = self._skip_special and token_id in self._texts.special and token_id not in self._shown
        return None if hidden else self._texts[token_id]

    def _text(self, raw: bytes, final: bool = False) -> str:
        if self._foreign:
            if not _continues(self._foreign, raw):
                self._strip(self._utf8.decode(b"", final=True))  # it does not show, but it was there
            self._foreign = b""
        return self._strip(self._utf8.decode(raw, final))

    def _strip(self, text: str) -> str:
        for strip in self._strips:
            text = strip.feed(text)
        return text

    def _end_of(self, ids: Sequence[int]) -> int:
        """Where the tokens begin of whose text something may be held back."""
        reach = self._reach
        for position in range(len(ids) - 1, -1, -1):
            piece = self._piece(ids[position])
            reach -= len(piece.later) if piece else 0
            if reach <= 0:
                return position
        return 0


class _Stripped:
    """A text without the characters that are cut off both its ends."""

    def __init__(self, strip: Strip) -> None:
        self._char, self._start, self._stop = strip
        self._held = ""

    @property
    def begun(self) -> bool:
        """Whether nothing is left to be cut off the beginning."""
        return not self._start

    def feed(self, text: str) -> str:
        """What is not cut off, or may not be."""
        if self._start and text:
            cut = min(self._start, len(text) - len(text.lstrip(self._char)))
            text = text[cut:]
            self._start = 0 if text else self._start - cut
        if self._stop:
            text = self._held + text
            kept = len(text) - min(self._stop, len(text) - len(text.rstrip(self._char)))
            text, self._held = text[:kept], text[kept:]
        return text


def _continues(character: bytes, raw: bytes) -> bool:
    """Whether the first of these bytes is a next byte of the character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(character + raw[:1], final=not raw)
    except UnicodeDecodeError:
        return False
    return True


class WindowDecoder:
    """For decoders of kinds unknown here: tokens are decoded behind some before them, whose text is taken off.

    `tokenizers.DecodeStream` does the same, but raises where a byte token changes what the bytes before it mean, and
    repeats a text that ends with U+FFFD.
    """

    def __init__(self, texts: TokenTexts, skip_special_tokens: bool, shown: frozenset[int] = frozenset()) -> None:
        self._tokenizer = texts.tokenizer
        self._skip_special = skip_special_tokens
        self._special = texts.special
        self._shown = shown
        self._known: list[int] = []
        self._known_text = ""
        self._pending: list[int] = []

    def skip(self, ids: Sequence[int]) -> None:
        """See `Decoder`."""
        self._known = list(ids[-_CONTEXT_TOKENS:])
        self._known_text = self._decode(self._known)

    def drop_incomplete(self) -> None:
        """See `Decoder`. It does so anyway."""

    def feed(self, token_id: int) -> str:
        """See `Decoder`."""
        self._pending.append(token_id)
        text = self._decode(self._known + self._pending)
        too_many = len(self._pending) > _MAX_PENDING
        if len(text) <= len(self._known_text):  # special tokens have no text
            if too_many:
                self._pending.clear()
            return ""
        if not text.endswith(_REPLACEMENT):
            return self._take(len(self._pending))
        return self._take(len(self._pending) - _MAX_INCOMPLETE) if too_many else ""

    def end(self) -> str:
        """See `Decoder`."""
        return self._take(len(self._pending)) if self._pending else ""

    def _decode(self, ids: list[int]) -> str:
        if self._skip_special and not self._shown.isdisjoint(ids):
            ids = [token_id for token_id in ids if token_id in self._shown or token_id not in self._special]
            return self._tokenizer.decode(ids, skip_special_tokens=False)
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)

    def _take(self, count: int) -> str:
        """The text of the first `count` pending tokens, which are known from now on."""
        taken, self._pending = self._pending[:count], self._pending[count:]
        text, alone = self._decode(self._known + taken), self._decode(taken)
        new = text[len(self._known_text) :] if text.startswith(self._known_text) else alone
        self._known, self._known_text = taken, alone
        return new
