"""The seeded requests of the benchmarks. No torch here: processes that only ask import this."""

from __future__ import annotations

import random
from dataclasses import dataclass

VOCAB_SIZE = 16384
"""Of the smallest checkpoint; prompts have no other tokens."""


@dataclass(frozen=True)
class Job:
    """One request: a prompt, and how many tokens it must get (ends of answers are ignored)."""

    prompt_ids: list[int]
    max_tokens: int

    @property
    def prompt(self) -> str:
        """Text that the checkpoint's tokenizer turns into exactly `prompt_ids`."""
        return " ".join(f"w{token}" for token in self.prompt_ids)


def make_jobs(count: int, seed: int | str = 0, part: float = 1.0) -> list[Job]:
    """`count` chats of 32 to 256 prompt tokens and 32 to 128 output tokens, uniformly; no shared prefixes.

    Args:
        count: of jobs.
        seed: equal ones give equal jobs.
        part: of the output tokens that is asked for.
    """
    rng = random.Random(seed)
    return [Job(_prompt(rng, rng.randint(32, 256)), round(part * rng.randint(32, 128))) for _ in range(count)]


def make_equal_jobs(count: int, prompt: int, answer: int, seed: int | str, shared: int = 0) -> list[Job]:
    """`count` requests of the same lengths; the first `shared` tokens of their prompts are those of all."""
    rng = random.Random(seed)
    beginning = _prompt(rng, shared)
    return [Job(beginning + _prompt(rng, prompt - shared), answer) for _ in range(count)]


def make_arrivals(rate: float, seconds: float, seed: int | str) -> list[float]:
    """Seconds at which requests arrive by chance (Poisson), `rate` a second on average; at least one."""
    rng = random.Random(seed)
    times = [rng.expovariate(rate)]
    while (later := times[-1] + rng.expovariate(rate)) <= seconds:
        times.append(later)
    return times


def _prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(tokens)]
