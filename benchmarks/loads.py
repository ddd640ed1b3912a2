"""What is asked of every contender: the loads, each with prompts of its own in every round.

A load runs in the process of a contender. It gets the way to that contender, and gives back what its callers saw.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

from benchmarks.answers import Answer, RefusedError
from benchmarks.figures import Limits
from benchmarks.jobs import Job, make_arrivals, make_equal_jobs, make_jobs

Ask = Callable[[Job, Answer], Awaitable[None]]
"""Sends one job and fills in the answer as it comes. Cancelled, it ends the request."""

SYSTEM_PROMPT, OWN_PROMPT = 1024, 32
LONG_PROMPT = 3000
MOST_TOKENS = 128
"""Of an answer."""
DEFAULT_LIMITS = Limits(first_token=1.0, per_token=0.1)


@dataclass(frozen=True)
class Seen:
    """What the callers of one round saw.

    Attributes:
        figure: what the load measures, in its unit.
        answers: of all callers.
    """

    figure: float
    answers: list[Answer]


@dataclass(frozen=True)
class Load(ABC):
    """One question. `part` of the usual output is asked for."""

    name: str
    title: str
    part: float = 1.0

    unit: ClassVar[str] = "tokens/s"
    more_is_better: ClassVar[bool] = True
    open: ClassVar[bool] = False
    """Whether requests come while others are answered; a contender of batches cannot take it."""

    @abstractmethod
    async def run(self, ask: Ask, number: int) -> Seen:
        """Round `number`."""

    def seed(self, number: int) -> str:
        """No two rounds and no two loads have the same prompts: a cache of prefixes would answer."""
        return f"{self.name}, round {number}"


@dataclass(frozen=True)
class Chats(Load):
    """So many callers at once, each with a chat of its own; a single one asks `chats` times."""

    callers: int = 1
    chats: int = 1

    def jobs(self, number: int) -> list[Job]:
        return make_jobs(max(self.callers, self.chats), self.seed(number), self.part)

    async def run(self, ask: Ask, number: int) -> Seen:
        jobs = self.jobs(number)
        answers, seconds = await all_of(ask, jobs, self.callers)
        return Seen(sum(job.max_tokens for job in jobs) / seconds, answers)


@dataclass(frozen=True)
class SharedPrompt(Load):
    """Callers whose prompts begin with the same system prompt, which is in use already."""

    callers: int = 32

    def jobs(self, number: int) -> list[Job]:
        """The first one brings the system prompt, and is not measured."""
        tokens = round(self.part * 64)
        prompt = SYSTEM_PROMPT + OWN_PROMPT
        return make_equal_jobs(self.callers + 1, prompt, tokens, self.seed(number), shared=SYSTEM_PROMPT)

    async def run(self, ask: Ask, number: int) -> Seen:
        first, *jobs = self.jobs(number)
        await all_of(ask, [first], 1)
        answers, seconds = await all_of(ask, jobs, self.callers)
        return Seen(sum(job.max_tokens for job in jobs) / seconds, answers)


@dataclass(frozen=True)
class Prefill(Load):
    """Long prompts, all at once, with a single token each."""

    unit: ClassVar[str] = "prompt tokens/s"

    callers: int = 8
    prompt: int = 1024

    def jobs(self, number: int) -> list[Job]:
        return make_equal_jobs(self.callers, self.prompt, 1, self.seed(number))

    async def run(self, ask: Ask, number: int) -> Seen:
        answers, seconds = await all_of(ask, self.jobs(number), self.callers)
        return Seen(self.callers * self.prompt / seconds, answers)


@dataclass(frozen=True)
class LongPrompt(Load):
    """A long prompt arrives while others read: how long their text stops."""

    unit: ClassVar[str] = "ms"
    more_is_better: ClassVar[bool] = False
    open: ClassVar[bool] = True

    callers: int = 8
    begun: int = 4
    """Pieces of text that each of them has before it arrives."""

    def jobs(self, number: int) -> list[Job]:
        """The last one is long."""
        readers = make_equal_jobs(self.callers, OWN_PROMPT, MOST_TOKENS, self.seed(number))
        return [*readers, *make_equal_jobs(1, LONG_PROMPT, 1, f"{self.seed(number)}, long")]

    async def run(self, ask: Ask, number: int) -> Seen:
        jobs = self.jobs(number)
        answers = [Answer(job.max_tokens) for job in jobs]
        *readers, long = answers
        async with asyncio.TaskGroup() as group:
            for job, answer in zip(jobs[:-1], readers, strict=True):
                group.create_task(_sent(ask, job, answer))
            while min(len(answer.times) for answer in readers) < self.begun:  # noqa: ASYNC110 - also filled by threads
                await asyncio.sleep(0.005)
            group.create_task(_sent(ask, jobs[-1], long))
        gaps = [gap for answer in readers for gap in answer.gaps(long.asked_at, long.times[0])]
        return Seen(1e3 * max(gaps, default=0.0), answers)


@dataclass(frozen=True)
class Arrivals(Load):
    """Chats arrive by chance, `rate` a second, whatever became of the earlier ones."""

    unit: ClassVar[str] = "requests/s"
    open: ClassVar[bool] = True

    rate: float = 1.0
    seconds: float = 15.0
    limits: Limits = DEFAULT_LIMITS

    def jobs(self, number: int) -> list[tuple[float, Job]]:
        """With the seconds at which they arrive."""
        times = make_arrivals(self.rate, self.seconds, self.seed(number))
        return list(zip(times, make_jobs(len(times), self.seed(number)), strict=True))

    async def run(self, ask: Ask, number: int) -> Seen:
        """The figure is the goodput. Who is not done when even the last one's patience has ended is given up."""
        jobs = self.jobs(number)
        answers = [Answer(job.max_tokens) for _, job in jobs]
        start = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.seconds + self.limits.patience(MOST_TOKENS)), asyncio.TaskGroup() as group:
                for (at, job), answer in zip(jobs, answers, strict=True):
                    await asyncio.sleep(max(0.0, start + at - time.monotonic()))
                    group.create_task(_tried(ask, job, answer))
        return Seen(sum(map(self.limits.kept_by, answers)) / self.seconds, answers)


async def all_of(ask: Ask, jobs: list[Job], callers: int) -> tuple[list[Answer], float]:
    """The answers, and how many seconds so many callers took, each of whom takes the next job when one is done."""
    answers = [Answer(job.max_tokens) for job in jobs]
    left = iter(zip(jobs, answers, strict=True))

    async def caller() -> None:
        for job, answer in left:
            await _sent(ask, job, answer)

    begin = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return answers, time.monotonic() - begin


async def _tried(ask: Ask, job: Job, answer: Answer) -> None:
    with suppress(RefusedError):
        await _sent(ask, job, answer)


async def _sent(ask: Ask, job: Job, answer: Answer) -> None:
    answer.asked_at = time.monotonic()
    await ask(job, answer)


CHOICES = ("chats", "shared", "prefill", "long-prompt", "latency")
"""What `--loads` knows."""


def loads_of(streams: tuple[int, ...], rates: tuple[float, ...], limits: Limits, *, quick: bool) -> list[Load]:
    """All of them.

    Args:
        streams: numbers of chats at once.
        rates: at which requests arrive, a second.
        limits: that they should keep.
        quick: shorter answers and fewer seconds.
    """
    part, seconds, many, few = (0.25, 4.0, 8, 2) if quick else (1.0, 15.0, 32, 8)
    chats = [
        Chats(f"chats-{count}", f"{count} chats at once" if count > 1 else "one stream", part, count, 1 if quick else 4)
        for count in sorted(streams, reverse=True)
    ]
    return [
        *chats,
        SharedPrompt("shared", f"{many} users of one system prompt of 1,024 tokens", part, many),
        Prefill("prefill", f"{few} prompts of 1,024 tokens, one token each", callers=few),
        LongPrompt("long-prompt", "worst gap in 8 streams while a prompt of 3,000 tokens arrives"),
        *(Arrivals(f"latency-{rate:g}", f"{rate:g} requests/s", 1.0, rate, seconds, limits) for rate in rates),
    ]
