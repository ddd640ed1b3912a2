"""Token ids to text: answers as they grow, whole texts, and the names of single tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from chat_engine.text.stop_strings import Places, StopStrings
from chat_engine.text.text_decoder import text_decoder
from chat_engine.text.token_text import texts_of


class TextStream:
    """The text of one answer. Incomplete characters and possible beginnings of stop strings are held back.

    The text is what the answer adds to that of the prompt. A character that the prompt begins and the answer completes
    is the answer's.

    Special tokens take part in stop strings even where they are hidden: what was held back for one and turns out not to
    be it is released without them.

    Args:
        tokenizer: the fast tokenizer.
        prompt_ids: the prompt; only its ends matter.
        stop: strings that end the answer. They are not part of it.
        skip_special_tokens: whether special tokens are hidden.
        echo: whether `echo_text` of the prompt precedes the answer, so that a character which the prompt begins and
            nothing completes must show.
        shown: special tokens that are not hidden all the same.
        places: where a stop string may end the answer; None: anywhere.

    Attributes:
        length: characters of the answer so far, with those held back because of stop strings: where the next token's
            text begins.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: tuple[int, ...] = (),
        stop: tuple[str, ...] = (),
        *,
        skip_special_tokens: bool = True,
        echo: bool = False,
        shown: frozenset[int] = frozenset(),
        places: Places | None = None,
    ) -> None:
        texts = texts_of(tokenizer)
        self.length = 0
        self._decoder = text_decoder(texts, skip_special_tokens, shown)
        self._decoder.skip(prompt_ids)
        if not echo:
            self._decoder.drop_incomplete()
        self._special = texts.special
        self._hides = skip_special_tokens
        self._stops = StopStrings(stop, places) if stop else None
        self._may_stop = True

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._stops is not None and self._stops.stopped

    def push(self, token_id: int, may_stop: bool = True) -> str:
        """The text that is final now that `token_id` has come.

        With `may_stop` false, it completes no stop string (the answer is still to have a number of tokens). One that
        begins in its text may be completed by a later token.
        """
        self._may_stop = may_stop
        if self._stops and self._hides and token_id in self._special:
            return self._stops.push(self._special[token_id], hidden=True, may_stop=may_stop)
        return self._released(self._decoder.feed(token_id))

    def close(self, token_id: int) -> str:
        """What was held back, at the end by a token that is no part of the answer; it may complete a stop string."""
        text = self._released(self._decoder.end())
        if self._stops and not self.stopped:
            text += self._stops.push(self._special.get(token_id, ""), hidden=True)
        return text if self._stops is None or self.stopped else text + self._stops.flush()

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ended. It may complete one."""
        text = self._released(self._decoder.end())
        return text if self._stops is None or self.stopped else text + self._stops.flush()

    def _released(self, text: str) -> str:
        self.length += len(text)
        return self._stops.push(text, may_stop=self._may_stop) if self._stops and text else text


class TokenNames:
    """The text and the bytes of single tokens, as logprobs report them: those of a token behind others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._texts = texts_of(tokenizer)
        self._cache: dict[int, tuple[str, bytes]] = {}

    def __call__(self, token_id: int) -> tuple[str, bytes]:
        """`(text, bytes)` of a token; a part of a character shows as U+FFFD in the text, and exactly in the bytes."""
        known = self._cache.get(token_id)
        if known is None:
            raw = self._texts.name(token_id)
            known = self._cache[token_id] = (raw.decode("utf-8", errors="replace"), raw)
        return known


def text_of(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of token ids; those that the tokenizer has no text for give none."""
    decoder = text_decoder(texts_of(tokenizer), skip_special_tokens)
    return "".join(map(decoder.feed, ids)) + decoder.end()


def echo_text(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """The text of a prompt that an answer follows: without a character at its end that the answer may complete."""
    return "".join(map(text_decoder(texts_of(tokenizer), skip_special_tokens).feed, ids))
