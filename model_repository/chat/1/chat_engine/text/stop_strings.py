"""Stop strings in a text that comes in parts, some of them hidden from the output."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from itertools import islice
from typing import Protocol


class Places(Protocol):
    """Where a text may end, which comes character by character."""

    def feed(self, char: str) -> None:
        """The next character that is shown."""

    def may_end(self, back: int) -> bool:
        """Whether the text without its last `back` characters may be all; asked of no more than a stop string has."""
        ...


class StopStrings:
    """Holds back what may become a stop string, and ends the text before one that is complete.

    Stop strings are looked for twice: in the text as it is shown, and with the hidden parts in it (special tokens). Of
    those that the same part completes, the one that begins first counts. Where the text before it may not be all, by
    `places`, a stop string is text like any other.
    """

    def __init__(self, stop: tuple[str, ...], places: Places | None = None) -> None:
        self.stopped = False
        self._places = places
        self._automaton = _automaton(stop)
        self._shown = 0  # the automaton's state behind what is shown
        self._all = 0  # and with the hidden parts
        self._held = ""
        self._is_shown: deque[bool] = deque(maxlen=max(map(len, stop)))  # of the last characters

    def push(self, text: str, *, hidden: bool = False, may_stop: bool = True) -> str:
        """What may be shown now that this text has come. With `may_stop` false it completes no stop string."""
        automaton = self._automaton
        end = len(self._held)
        begins = []
        for char in text:
            same = self._all == self._shown
            self._is_shown.append(not hidden)
            if not hidden:
                end += 1
                if self._places:
                    self._places.feed(char)
                self._shown = automaton.after(self._shown, char)
            self._all = self._shown if same and not hidden else automaton.after(self._all, char)
            if may_stop:
                lengths = []
                if not hidden and (length := automaton.complete[self._shown]):
                    lengths.append(length)
                if length := automaton.complete[self._all]:
                    lengths.append(self._count_shown(length))
                begins += [end - length for length in lengths if self._may_stop_at(length)]
        self._held += "" if hidden else text
        if begins:
            self.stopped = True
            text, self._held = self._held[: min(begins)], ""
            return text
        keep = automaton.partial[self._shown]
        if self._all != self._shown:
            keep = max(keep, self._count_shown(automaton.partial[self._all]))
        text, self._held = self._held[: end - keep], self._held[end - keep :]
        return text

    def flush(self) -> str:
        """What was held back."""
        text, self._held = self._held, ""
        return text

    def _may_stop_at(self, back: int) -> bool:
        return self._places is None or self._places.may_end(back)

    def _count_shown(self, length: int) -> int:
        """How many of the last characters are shown."""
        return sum(islice(reversed(self._is_shown), length))


class _Automaton:
    """Finds many strings in one pass (Aho and Corasick, 1975).

    A state is the longest end of the text that a string begins with; state 0 is none.

    Attributes:
        complete: for each state the length of the longest string that ends there, or 0.
        partial: for each state the length of the longest end that a string may yet grow from.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the state of the next shorter end
        self.complete = [0]
        for string in strings:
            self.complete[self._add(string)] = len(string)
        self.partial = [0] * len(self._next)
        states = deque((state, 1) for state in self._next[0].values())
        while states:  # the shorter before the longer
            state, length = states.popleft()
            shorter = self._shorter[state]
            self.complete[state] = self.complete[state] or self.complete[shorter]
            self.partial[state] = length if self._next[state] else self.partial[shorter]
            for char, longer in self._next[state].items():
                self._shorter[longer] = self.after(shorter, char)
                states.append((longer, length + 1))

    def after(self, state: int, char: str) -> int:
        """The state behind one more character."""
        while state and char not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(char, 0)

    def _add(self, string: str) -> int:
        state = 0
        for char in string:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.complete.append(0)
            state = self._next[state][char]
        return state


@lru_cache(16)
def _automaton(stop: tuple[str, ...]) -> _Automaton:
    """Kept for the choices of one request, and for callers who always send the same."""
    return _Automaton(stop)
