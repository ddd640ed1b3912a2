"""Token ids to text, one token at a time: incomplete UTF-8 and possible beginnings of stop strings are held back."""

from __future__ import annotations

import functools
import re

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

# Enough of the prompt's end for the decoder to know whether the first new token begins with a space.
_CONTEXT_TOKENS = 6
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: the fast tokenizer.
        prompt_ids: the prompt; only its end matters.
        stop: strings that end the answer. They are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: tuple[int, ...] = (), stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt_ids[-_CONTEXT_TOKENS:]), skip_special_tokens=True)
        self._undecoded: list[int] = []
        self._stop = stop
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is final now that `token_id` has come; `stopped` says whether a stop string was completed."""
        self._undecoded.append(token_id)
        text = self._stream.step(self._tokenizer, token_id)
        if text is None:
            return ""
        self._undecoded.clear()
        return self._release(text) if self._stop else text

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended."""
        rest = self._tokenizer.decode(self._undecoded, skip_special_tokens=True) if self._undecoded else ""
        self._undecoded.clear()
        text = self._release(rest) if self._stop else rest
        held, self._held = self._held, ""
        return text if self.stopped else text + held

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
