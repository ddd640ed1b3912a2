"""How fast an answer came, by the clock of whoever reads it."""

from __future__ import annotations

AT_ONCE_S = 0.02
"""What comes within so short a time came at once: it tells how late its reader was, not how fast the model is. On a
busy machine tokens share responses, and a reader that had to wait for a core finds several responses waiting."""


class Pace:
    """Times are in seconds from the sending of the request on; token counts are cumulative."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._begun_s, self._begun_tokens = 0.0, 0
        """What came at once with the first tokens."""
        self._last_s, self._last_tokens = 0.0, 0

    def add(self, now_s: float, tokens: int) -> None:
        """So many tokens are there now; a response without new ones, such as an empty last one, changes nothing."""
        if tokens <= self._last_tokens:
            return
        self._last_s, self._last_tokens = now_s, tokens
        if self._first_s is None:
            self._first_s = now_s
        if now_s - self._first_s < AT_ONCE_S:
            self._begun_s, self._begun_tokens = now_s, tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after those that came first; None where all came at once, for then nobody can say."""
        seconds = self._last_s - self._begun_s
        if seconds < AT_ONCE_S:
            return None
        return (self._last_tokens - self._begun_tokens) / seconds
