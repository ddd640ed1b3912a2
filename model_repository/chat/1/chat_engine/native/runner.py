"""What the engine needs of a model that computes its steps; tests put one without weights in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chat_engine.native.generation_defaults import GenerationDefaults
from chat_engine.native.sampler import Sampled, SamplingState, Scored, Targets


@dataclass(frozen=True)
class RunnerLimits:
    """What the loaded model and the device allow; tokens.

    `max_scored_tokens` is how many prompt tokens may have their logits taken in one step.
    """

    max_model_len: int
    max_step_tokens: int
    block_size: int
    num_blocks: int
    vocab_size: int
    max_scored_tokens: int = 512


@dataclass(frozen=True)
class Row:
    """One sequence's part of a step.

    Attributes:
        tokens: ids to compute.
        length: tokens of the sequence in the cache once these are.
        blocks: its block numbers.
        sampling: None when the chunk ends before the sequence does, or no token is wanted.
        targets: prompt tokens to be scored, where wanted.
        guesses: how many of `tokens`, at the end, are guesses; a token is chosen before each, and behind the last.
        follows: the row of the step before whose token, not known yet, this one computes; `tokens` holds a placeholder.
    """

    tokens: list[int]
    length: int
    blocks: list[int]
    sampling: SamplingState | None
    targets: Targets | None = None
    guesses: int = 0
    follows: int | None = None


class Started(Protocol):
    """A step on its way."""

    def results(self) -> list[Sampled | Scored | None]:
        """Waits. Of each row its next token, and scores, where wanted."""
        ...

    @property
    def stale(self) -> list[int]:
        """Rows whose token turned out to be another than the one that a step started behind this one took for it."""
        ...


class Runner(Protocol):
    """A model that computes steps."""

    limits: RunnerLimits
    defaults: GenerationDefaults
    longest_pass: float
    """Seconds of the longest forward pass before anybody is served."""

    runs_ahead: bool
    """Whether a step of rows that follow those of the step before may be started before that one's results are there,
    and is worth it."""

    def start(self, rows: list[Row]) -> Started:
        """Begins one step: KV of all tokens, the next token of each row that samples, scores where wanted."""
        ...
