"""The engine's log-probabilities in the shapes of the two endpoints. Sources: OpenAI API reference; vLLM's server."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Final

from openai.types.chat import ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_token_logprob import TopLogprob as ChatTopLogprob
from openai.types.completion_choice import Logprobs

from triton_chat.types import PromptLogprob, TokenLogprob, TopLogprob

_MOST_IN_FRONT: Final = 4
"""Tokens with a text of their own that may stand before an echoed prompt and are not in it."""
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


def prompt_logprobs(tokens: Sequence[PromptLogprob], top: int) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's: of each token, itself and the `top` most probable ones by their ids; null for the first."""
    return [None if token.logprob is None else _by_id(token, token.logprob, top) for token in tokens]


class CompletionLogprobs:
    """`logprobs` of one choice of `/v1/completions`, in one piece or chunk by chunk.

    `text_offset` is where in the choice's text the token begins, in characters; of the tokens that share a character,
    each has the place of that character.

    Args:
        top: how many alternatives were asked for, so that all chunks have them or none; otherwise each as it comes.
    """

    def __init__(self, top: int | None = None) -> None:
        self._asked = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self._echo: _Echo | None = None

    def add(self, tokens: Sequence[TokenLogprob], prompt: Sequence[PromptLogprob] = (), text: str = "") -> Logprobs:
        """The next tokens: of the prompt, where it is echoed, then of the answer. The first `text` holds the echo."""
        entries: list[PromptLogprob | TokenLogprob] = [*prompt, *tokens]
        with_top = any(entry.top_logprobs for entry in entries) if self._asked is None else self._asked > 0
        parts: dict[str, Any] = {
            "tokens": [_name(entry) for entry in entries],
            "token_logprobs": [None if entry.logprob is None else _finite(entry.logprob) for entry in entries],
            "top_logprobs": [_top(entry, self._asked) for entry in entries] if with_top else None,
            "text_offset": [
                *(self._pass_prompt(token, text) for token in prompt),
                *(self._pass(token) for token in tokens),
            ],
        }
        # Unchecked, because the type does not know the nulls that OpenAI sends for the first token of a prompt.
        return Logprobs.model_construct(**parts)

    def _pass(self, token: TokenLogprob) -> int:
        if self._echo is not None:
            self._length, self._echo = self._echo.end(), None
        offset = self._length
        self._length += len(self._decoder.decode(_raw(token)))
        return offset

    def _pass_prompt(self, token: PromptLogprob, text: str) -> int:
        self._echo = self._echo or _Echo(text)
        return self._echo.pass_by(token)


class _Echo:
    """Finds the tokens of a prompt in its text, which may lack what a tokenizer adds in front: a token, a space."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self._in_front = _MOST_IN_FRONT

    def pass_by(self, token: PromptLogprob) -> int:
        """Where the token begins."""
        offset, piece = self._length, self._decoder.decode(_raw(token))
        if self._in_front and piece:
            self._in_front -= 1
            piece = self._first(piece)
        self._length += len(piece)
        return offset

    def end(self) -> int:
        """Where the answer begins."""
        return self._length + len(self._decoder.decode(b"", final=True))

    def _first(self, piece: str) -> str:
        """As much of it as the text has."""
        for part in (piece, piece.removeprefix(" ")):
            if part and self._text.startswith(part):
                self._in_front = 0
                return part
        return "" if self._in_front else piece  # else the text was changed before it was tokenised


def _top(token: TokenLogprob | PromptLogprob, count: int | None) -> dict[str, float] | None:
    """The alternatives, and the token itself if it is not one of them."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for entry in (*token.top_logprobs[:count], token):  # of several with one name the most probable
        top.setdefault(_name(entry), _finite(_LEAST if entry.logprob is None else entry.logprob))
    return top


def _by_id(token: PromptLogprob, logprob: float, top: int) -> dict[str, dict[str, Any]]:
    own = {str(token.token_id): _ranked(token, logprob, token.rank)}
    others = enumerate(token.top_logprobs[:top], start=1)
    return own | {str(other.token_id): _ranked(other, other.logprob, rank) for rank, other in others}


def _ranked(entry: PromptLogprob | TopLogprob, logprob: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": entry.token}


def _raw(token: TokenLogprob | PromptLogprob) -> bytes:
    return token.token.encode() if token.bytes is None else bytes(token.bytes)


def _name(entry: TokenLogprob | PromptLogprob | TopLogprob) -> str:
    r"""Its text or, for a part of a character, OpenAI's `bytes:\xe4\xb8`, since such parts all have the same text."""
    if entry.bytes is None or "\ufffd" not in entry.token or bytes(entry.bytes) == entry.token.encode():
        return entry.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.bytes)


def _bytes(entry: TokenLogprob | TopLogprob) -> list[int] | None:
    return None if entry.bytes is None else list(entry.bytes)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
