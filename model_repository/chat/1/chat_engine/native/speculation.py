"""Guessing ahead: what followed the last time that an answer's last tokens occurred, in its prompt or in itself.

Prompt lookup decoding (Saxena 2023; vLLM's n-gram speculation). The model computes the guesses beside the token that is
known, in one pass, and chooses at each of their places as it would have without: a guess that is its choice has cost
next to nothing, and the choice behind the last right one is the next token (speculative decoding, arXiv:2211.17192). A
draw depends on seed and place alone (decision 4), so the text is the same as without guesses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from chat_engine.config import NgramSettings

# Of the last so many guesses a part must have been right, else the sequence makes none for as many tokens.
_REMEMBERED = 64
_WORTH = 0.2


class Guesses:
    """Of one sequence.

    Args:
        settings: how many, and by how many tokens they are found.
    """

    def __init__(self, settings: NgramSettings) -> None:
        self._settings = settings
        self._sizes = range(settings.longest, settings.shortest - 1, -1)
        # Where the last occurrence of a run of tokens ends, and the one before it.
        self._ends: dict[tuple[int, ...], tuple[int, int]] = {}
        self._seen = 0
        self._right: deque[int] = deque(maxlen=_REMEMBERED)
        self._rests_until = 0

    def next(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`, which only grow from call to call."""
        self._note(tokens)
        most = min(most, self._settings.tokens)
        if most <= 0 or len(tokens) < self._rests_until:
            return []
        for size in self._sizes:
            _, begin = self._ends.get(tuple(tokens[-size:]), (0, 0))  # the last occurrence is that at the end
            if begin:
                period = len(tokens) - begin
                return [tokens[begin + place % period] for place in range(most)]
        return []

    def judge(self, guessed: int, right: int, length: int) -> None:
        """Notes how many guesses were right, in a sequence of so many tokens now."""
        self._right.extend([1] * right + [0] * (guessed - right))
        if len(self._right) == _REMEMBERED and sum(self._right) < _WORTH * _REMEMBERED:
            self._rests_until = length + _REMEMBERED
            self._right.clear()

    def _note(self, tokens: Sequence[int]) -> None:
        for end in range(self._seen + 1, len(tokens) + 1):
            for size in self._sizes:
                if size <= end:
                    run = tuple(tokens[end - size : end])
                    self._ends[run] = end, self._ends.get(run, (0, 0))[0]
        self._seen = len(tokens)
