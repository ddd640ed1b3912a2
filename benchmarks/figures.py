"""The arithmetic of the benchmark: spreads, percentiles, limits and the knee."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.answers import Answer

LEAST_SHARE = 0.9
"""So many of the requests keep the limits where a rate counts as served."""


@dataclass(frozen=True)
class Spread:
    """Of the rounds: least, quartiles, most."""

    least: float
    low: float
    median: float
    high: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*(percentile(values, part) for part in (0, 0.25, 0.5, 0.75, 1)))


def percentile(values: Sequence[float], part: float) -> float:
    """Between two values on a straight line. Infinite values stand for those that did not come in time."""
    ranked = sorted(values)
    place = part * (len(ranked) - 1)
    below, above = ranked[math.floor(place)], ranked[math.ceil(place)]
    # No arithmetic with the infinite: their difference is none.
    return below if below == above else below + (above - below) * (place - math.floor(place))


@dataclass(frozen=True)
class Limits:
    """What a caller may expect, in seconds: until the first token, and for each later one."""

    first_token: float
    per_token: float

    def kept_by(self, answer: Answer) -> bool:
        return answer.first_token_s <= self.first_token and answer.per_token_s <= self.per_token

    def patience(self, most_tokens: int) -> float:
        """Who keeps the limits is done so many seconds after he asked."""
        return self.first_token + most_tokens * self.per_token


@dataclass(frozen=True)
class Served:
    """What became of requests that arrived at one rate.

    Attributes:
        share: of them that kept the limits.
        goodput: that kept the limits, a second.
        first_tokens: seconds, of all; infinite where none came.
        per_token: likewise.
    """

    share: float
    goodput: float
    first_tokens: list[float]
    per_token: list[float]

    @classmethod
    def of(cls, answers: Sequence[Answer], seconds: float, limits: Limits) -> Served:
        """`seconds` is how long requests arrived."""
        kept = sum(map(limits.kept_by, answers))
        return cls(
            share=kept / len(answers),
            goodput=kept / seconds,
            first_tokens=[answer.first_token_s for answer in answers],
            per_token=[answer.per_token_s for answer in answers],
        )


def knee(shares: Mapping[float, float]) -> float | None:
    """The highest rate at which enough requests keep the limits; None where there is none."""
    return max((rate for rate, share in shares.items() if share >= LEAST_SHARE), default=None)
