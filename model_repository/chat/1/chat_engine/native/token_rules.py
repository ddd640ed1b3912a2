"""Which tokens a checkpoint rules out, by its `generation_config.json`."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenRules:
    """Tokens that the checkpoint itself rules out, whatever a request asks for.

    Attributes:
        no_repeat_ngram_size: no run of so many tokens occurs twice in prompt and answer; 0 rules nothing out.
        suppressed: never made.
        suppressed_first: not made as the first token of an answer.
    """

    no_repeat_ngram_size: int = 0
    suppressed: frozenset[int] = frozenset()
    suppressed_first: frozenset[int] = frozenset()


class Ngrams:
    """Every run of `size` tokens so far, by its beginning."""

    def __init__(self, size: int, tokens: Iterable[int]) -> None:
        self._size = size
        self._end: deque[int] = deque(maxlen=size - 1)
        self._followers: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for token_id in tokens:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Notes the next token."""
        if len(self._end) == self._size - 1:
            self._followers[tuple(self._end)].add(token_id)
        self._end.append(token_id)

    def would_repeat(self) -> set[int]:
        """The tokens after which a run would have occurred twice."""
        return self._followers.get(tuple(self._end), set())
