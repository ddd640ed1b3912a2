"""The forward pass of a step: its rows laid out in one line, through the model, to the logits that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from chat_engine.native.attention import AttentionBatch
from chat_engine.native.copied import CopiedBatch
from chat_engine.native.decodes import Beginning, arrange
from chat_engine.native.paged_cache import PagedCache, Span
from chat_engine.native.runner import Row
from chat_engine.native.step_threads import StepThreads


@dataclass(frozen=True)
class Line:
    """The rows of a step, one after the other.

    Attributes:
        tokens: of all rows.
        positions: of the tokens in their sequences.
        spans: of the rows.
        wanted: places whose logits are wanted: of the rows that sample, then of those to be scored.
        sources: of each sequence, which token of the step before its row takes; -1: none, as for all prefills.
    """

    tokens: list[int]
    positions: list[int]
    spans: list[Span]
    wanted: list[int]
    sources: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Line:
        """Of rows in attention order."""
        tokens: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        sampled: list[int] = []
        scored: list[int] = []
        for row in rows:
            count = len(row.tokens)
            if row.targets:
                first = len(tokens) + row.targets.first
                scored += range(first, first + len(row.targets.token_ids))
            spans.append(Span(len(tokens), count, row.length, row.blocks))
            tokens += row.tokens
            positions += range(row.length - count, row.length)
            if row.sampling:
                sampled += range(len(tokens) - 1 - row.guesses, len(tokens))
        sources = [-1 if row.follows is None else row.follows for row in rows]
        return cls(tokens, positions, spans, sampled + scored, sources)


def attention_order(rows: Sequence[Row], cache: PagedCache) -> tuple[list[int], list[Beginning]]:
    """The order in which a step's sequences are to stand, decodes first, and what the decodes share."""
    decodes = [i for i, row in enumerate(rows) if len(row.tokens) == 1]
    prefills = [i for i, row in enumerate(rows) if len(row.tokens) > 1]
    order, beginnings = arrange([rows[i] for i in decodes], cache.block_size if cache.can_share else None)
    return [decodes[i] for i in order] + prefills, beginnings


class ForwardPass(Protocol):
    """Computes steps; on the thread that has made it."""

    threads: StepThreads

    def __call__(self, rows: Sequence[Row], beginnings: Sequence[Beginning] = ()) -> Tensor:
        """Logits `[sampling rows, then targets, vocab]`; `rows` stand in attention order. Valid until the next call."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """Whether rows may take tokens of the step before, where it is on its way, and that saves time."""
        ...

    def note(self, token_ids: Tensor) -> None:
        """Keeps the tokens of this step, for rows of the next."""
        ...

    def sizes(self, most: int) -> list[int]:
        """Tokens of the passes to warm up, largest first; none has more than `most`."""
        ...


class PaddedPass:
    """Over copies of the blocks."""

    runs_ahead = False

    def __init__(self, model: PreTrainedModel, cache: PagedCache) -> None:
        self._model = model
        self._cache = cache
        self._device = model.device
        self._shapes = SHAPES if model.device.type == "cpu" else None
        self.threads = StepThreads(model.device)

    def __call__(self, rows: Sequence[Row], beginnings: Sequence[Beginning] = ()) -> Tensor:
        """See `ForwardPass`."""
        line = Line.of(rows)
        self.threads.choose(len(line.tokens))
        padding = [0] * (padded(len(line.tokens), self._shapes) - len(line.tokens))
        keep = line.wanted + [0] * (padded(len(line.wanted), self._shapes) - len(line.wanted))
        return compute(
            self._model,
            CopiedBatch(self._cache, line.spans, beginnings, self._device),
            self._tensor(line.tokens + padding),
            self._tensor(line.positions + padding),
            self._tensor(keep or [0]),
        )[: len(line.wanted)]

    def note(self, token_ids: Tensor) -> None:
        """See `ForwardPass`: its rows never wait for tokens."""

    def sizes(self, most: int) -> list[int]:
        """See `ForwardPass`."""
        return padded_sizes(most, self._shapes)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


SHAPES = 8
"""For each power of two, where each number of rows costs a set-up, as in oneDNN."""


def padded(count: int, shapes: int | None) -> int:
    """Rows of a pass for so many: rounded up to one of `shapes` numbers for each power of two; None: not at all."""
    if shapes is None:
        return count
    step = 1 << max(0, count.bit_length() - shapes.bit_length())
    return -(-count // step) * step


def padded_sizes(most: int, shapes: int | None) -> list[int]:
    """Tokens of the passes to warm up: every padded shape, or else the two ends."""
    if shapes is None:
        return sorted({1, most}, reverse=True)
    # A padded shape may be more than one sequence can hold; the pass itself pads the largest.
    return sorted({min(padded(n, shapes), most) for n in range(1, most + 1)}, reverse=True)


def compute(
    model: PreTrainedModel, batch: AttentionBatch, tokens: Tensor, positions: Tensor, keep: Tensor | int = 0
) -> Tensor:
    """Logits `[keep, vocab]` of a line of tokens, all `[rows]`; of every row with `keep` 0."""
    logits = model(
        input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep, paged=batch
    ).logits
    return torch.as_tensor(logits[0])
