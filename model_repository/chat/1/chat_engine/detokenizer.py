"""Token ids to text, one token at a time: incomplete UTF-8 and possible beginnings of stop strings are held back."""

from __future__ import annotations

import functools
import re

from tokenizers import Tokenizer

# Enough of the prompt's end for the decoder to know whether the first new token begins with a space.
_CONTEXT_TOKENS = 6
# A character takes at most four byte tokens, so three may be its beginning; more than this many are no beginning.
_MAX_INCOMPLETE = 3
_MAX_PENDING = 16
_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream:
    """The text of one answer.

    Tokens are decoded behind those before them, and the text of those is taken off. `tokenizers.DecodeStream` does the
    same, but raises where a byte token changes what the bytes before it mean, and repeats a prompt that ends with
    U+FFFD.

    Args:
        tokenizer: the fast tokenizer.
        prompt_ids: the prompt; only its end matters.
        stop: strings that end the answer. They are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...] = (), stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._known = list(prompt_ids[-_CONTEXT_TOKENS:])  # decoded already; what follows is read behind them
        self._known_text = self._decode(self._known)
        self._pending: list[int] = []
        self._stop = stop
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is final now that `token_id` has come; `stopped` says whether a stop string was completed."""
        self._pending.append(token_id)
        text = self._decode(self._known + self._pending)
        too_many = len(self._pending) > _MAX_PENDING
        if len(text) <= len(self._known_text):  # special tokens have no text
            if too_many:
                self._pending.clear()
            return ""
        if not text.endswith(_REPLACEMENT):
            return self._filter(self._take(len(self._pending), text))
        return self._filter(self._take(len(self._pending) - _MAX_INCOMPLETE)) if too_many else ""

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        text = self._filter(self._take(len(self._pending)) if self._pending else "")
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _take(self, count: int, text: str | None = None) -> str:
        """The text of the first `count` pending tokens, which are known from now on."""
        taken, self._pending = self._pending[:count], self._pending[count:]
        text = self._decode(self._known + taken) if text is None else text
        alone = self._decode(taken)
        new = text[len(self._known_text) :] if text.startswith(self._known_text) else alone
        self._known, self._known_text = taken, alone
        return new

    def _filter(self, text: str) -> str:
        return self._release(text) if self._stop else text

    def _release(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max(_overlap(self._held, stop) for stop in self._stop)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text


class TokenNames:
    """The text and the bytes of single tokens, as logprobs report them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = '"ByteLevel"' in tokenizer.to_str()
        self._cache: dict[int, tuple[str, bytes]] = {}

    def __call__(self, token_id: int) -> tuple[str, bytes]:
        """`(text, bytes)` of a token; a part of a character shows as U+FFFD in the text, and exactly in the bytes."""
        known = self._cache.get(token_id)
        if known is None:
            raw = self._bytes(self._tokenizer.id_to_token(token_id) or "")
            known = self._cache[token_id] = (raw.decode("utf-8", errors="replace"), raw)
        return known

    def _bytes(self, name: str) -> bytes:
        if match := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(match[1], 16)])
        if self._byte_level and all(char in _byte_of_char() for char in name):
            return bytes(_byte_of_char()[char] for char in name)
        return name.replace("\u2581", " ").encode()


@functools.cache
def _byte_of_char() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE vocabularies (GPT-2), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
