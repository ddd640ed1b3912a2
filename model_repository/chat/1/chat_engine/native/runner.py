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
    """

    tokens: list[int]
    length: int
    blocks: list[int]
    sampling: SamplingState | None
    targets: Targets | None = None


class Runner(Protocol):
    """A model that computes steps."""

    limits: RunnerLimits
    defaults: GenerationDefaults
    longest_pass: float
    """Seconds of the longest forward pass before anybody is served."""

    def run(self, rows: list[Row]) -> list[Sampled | Scored | None]:
        """Computes one step: KV of all tokens, the next token of each row that samples, scores where wanted."""
        ...
