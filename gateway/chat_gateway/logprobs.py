"""The engine's log-probabilities in the shapes of the two endpoints. Source: OpenAI API reference."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Final

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob as ChatTopLogprob
from openai.types.completion_choice import Logprobs

from triton_chat.types import TokenLogprob, TopLogprob

_LEAST: Final = -9999.0
"""OpenAI's value for what is hardly possible; JSON has no infinity."""


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
    """`logprobs.content` of a chat choice or chunk."""
    return [
        ChatCompletionTokenLogprob(
            token=token.token,
            logprob=_finite(token.logprob),
            bytes=_bytes(token),
            top_logprobs=[
                ChatTopLogprob(token=top.token, logprob=_finite(top.logprob), bytes=_bytes(top))
                for top in token.top_logprobs
            ],
        )
        for token in tokens
    ]


class CompletionLogprobs:
    """`logprobs` of one choice of `/v1/completions`, in one piece or chunk by chunk.

    `text_offset` is where in the choice's text the token begins, in characters; of the tokens that share a character,
    each has the place of that character.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def add(self, tokens: Sequence[TokenLogprob]) -> Logprobs:
        """The next tokens."""
        tops = [_top(token) for token in tokens] if any(token.top_logprobs for token in tokens) else None
        return Logprobs(
            tokens=[_name(token) for token in tokens],
            token_logprobs=[_finite(token.logprob) for token in tokens],
            top_logprobs=tops,
            text_offset=[self._pass(token) for token in tokens],
        )

    def _pass(self, token: TokenLogprob) -> int:
        offset = self._length
        raw = token.token.encode() if token.bytes is None else bytes(token.bytes)
        self._length += len(self._decoder.decode(raw))
        return offset


def _top(token: TokenLogprob) -> dict[str, float]:
    """The alternatives, and the token itself if it is not one of them."""
    alternatives: tuple[TokenLogprob | TopLogprob, ...] = (*token.top_logprobs, token)
    return {_name(entry): _finite(entry.logprob) for entry in alternatives}


def _name(entry: TokenLogprob | TopLogprob) -> str:
    r"""Its text or, for a part of a character, OpenAI's `bytes:\xe4\xb8`, since such parts all have the same text."""
    if entry.bytes is None or "\ufffd" not in entry.token or bytes(entry.bytes) == entry.token.encode():
        return entry.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.bytes)


def _bytes(entry: TokenLogprob | TopLogprob) -> list[int] | None:
    return None if entry.bytes is None else list(entry.bytes)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
