"""Who runs this step: decodes first, then prefill chunks, under one token budget. Pure Python, no torch.

Continuous batching with iteration-level scheduling (Orca, OSDI 2022) and chunked prefill (Sarathi, arXiv:2308.16369):
sequences join and leave at every step, and a long prompt is prefilled in chunks beside the running decodes, so it never
stalls them.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace

from chat_engine.native.kv_cache import KVCache
from chat_engine.native.sequence import Sequence

_PATIENCE = 256
# Fewer tokens of a prompt take hardly less time, and the prompt would be long in coming.
_LEAST_PROMPT = 64
_TIMES_DECODES = 4


@dataclass(frozen=True)
class Chunk:
    """The part of one sequence that a step computes: `count` tokens, from `sequence.num_computed` on, then guesses."""

    sequence: Sequence
    count: int
    guesses: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that its last logits give the next token."""
        return self.sequence.num_computed + self.count == self.sequence.num_tokens

    @property
    def scored(self) -> range:
        """Places in the sequence of the tokens whose logits score the token behind them."""
        sequence = self.sequence
        end = min(sequence.num_computed + self.count, sequence.num_scored + sequence.num_unscored)
        return range(sequence.num_scored, max(sequence.num_scored, end))


class StepLimit:
    """How many tokens a step may have: fewer for a while after one that the model could compute in parts only.

    Memory is short then, and a step that fails costs the time of two. Half as many each time, never fewer than `least`;
    after every `_PATIENCE` steps that the model computed whole, twice as many again.
    """

    def __init__(self, most: int, least: int) -> None:
        self.tokens = most
        self._most = most
        self._least = least
        self._whole = 0

    def note_in_parts(self, tokens: int) -> None:
        """A step of so many tokens could be computed in parts only."""
        self.tokens = min(self.tokens, max(self._least, tokens // 2))
        self._whole = 0

    def note_whole(self) -> None:
        """A step could be computed."""
        self._whole += 1
        if self._whole >= _PATIENCE and self.tokens < self._most:
            self.tokens = min(self._most, 2 * self.tokens)
            self._whole = 0


class Pace:
    """How many tokens of prompts a step has beside decodes, so that nobody who reads an answer waits long for more.

    Learnt from the steps before: a long context makes the same number of tokens take longer.

    Args:
        seconds: that such a step may take, or some times as long as one of decodes alone, where these are slow; 0: any.
        token_seconds: what a token of a prompt takes, as far as known.
    """

    def __init__(self, seconds: float, token_seconds: float) -> None:
        self._seconds = seconds
        self._token_seconds = token_seconds
        self._decodes_seconds = 0.0

    def tokens(self, reading: int, waiting: int) -> int | None:
        """While so many (at least one) read answers, and so many wait for their first token. None: no limit.

        Small steps take those who wait longer; where these are more, a step may last longer, as many times as they are.
        """
        if not self._seconds or not self._token_seconds:
            return None
        seconds = max(self._seconds, _TIMES_DECODES * self._decodes_seconds) * max(1.0, waiting / reading)
        return max(_LEAST_PROMPT, int(seconds / self._token_seconds))

    def note(self, prompt_tokens: int, seconds: float) -> None:
        """A step has taken so long, with so many tokens of prompts; those of decodes add a little to these."""
        if not prompt_tokens:
            self._decodes_seconds = _mixed(self._decodes_seconds, seconds)
        elif prompt_tokens >= _LEAST_PROMPT:
            self._token_seconds = _mixed(self._token_seconds, seconds / prompt_tokens)


def _mixed(before: float, now: float) -> float:
    return (before + now) / 2 if before else now


@dataclass
class _Room:
    """What a step has left: tokens, and logits of prompt tokens."""

    tokens: int
    scored: int

    def take(self, sequence: Sequence) -> Chunk | None:
        """As much of the sequence as there is room for."""
        count = min(sequence.num_uncomputed, self.tokens)
        if sequence.num_unscored > self.scored:
            count = min(count, sequence.num_scored + self.scored - sequence.num_computed)
        if count <= 0:
            return None
        chunk = Chunk(sequence, count)
        self.tokens -= count
        self.scored -= len(chunk.scored)
        return chunk


class Scheduler:
    """Holds the waiting and the running sequences and picks each step's chunks.

    Args:
        cache: the block accounting; one sequence of the longest allowed length must fit into it.
        max_sequences: sequences that run side by side.
        max_step_tokens: tokens of one step; at least `max_sequences`, since each running one needs one.
        max_scored_tokens: of those, prompt tokens whose logits are wanted: logits are large. None: no limit.
        max_guessing: while more sequences run than these, none guesses ahead.
        pace: of prompts beside decodes; None: as many tokens as a step can have.
    """

    def __init__(
        self,
        cache: KVCache,
        max_sequences: int,
        max_step_tokens: int,
        max_scored_tokens: int | None = None,
        max_guessing: int = 0,
        pace: Pace | None = None,
    ) -> None:
        self.cache = cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0
        self._max_sequences = max_sequences
        self._max_guessing = max_guessing
        self.step_limit = StepLimit(max_step_tokens, max_sequences)
        self.pace = pace or Pace(0, 0)
        self._max_scored_tokens = max_step_tokens if max_scored_tokens is None else max_scored_tokens

    @property
    def sequences(self) -> list[Sequence]:
        """Every sequence that has not ended."""
        return [*self.running, *self.waiting]

    @property
    def has_room(self) -> bool:
        """Whether a sequence waits that could run."""
        return bool(self.waiting) and len(self.running) < self._max_sequences

    def add(self, sequence: Sequence) -> None:
        """Lets `sequence` wait for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence that has ended, wherever it stands, and frees its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.cache.release(sequence.table)

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step, decodes first; empty only when nothing is left to run."""
        budget = self.step_limit.tokens
        decodes = self._decodes(budget)
        room = _Room(budget - len(decodes), self._max_scored_tokens)
        prefilling = [sequence for sequence in self.running if sequence.is_prefilling]
        waiting = len(prefilling) + min(self._max_sequences - len(self.running), len(self.waiting))
        if decodes and (most := self.pace.tokens(len(decodes), waiting)) is not None:
            room.tokens = min(room.tokens, most)
        prefills = [room.take(sequence) for sequence in prefilling]
        while room.tokens > 0 and self._admit():
            prefills.append(room.take(self.running[-1]))
        if len(self.running) <= self._max_guessing:
            decodes = [self._with_guesses(chunk, room) for chunk in decodes]
        return decodes + [chunk for chunk in prefills if chunk]

    def _with_guesses(self, chunk: Chunk, room: _Room) -> Chunk:
        """As many as there are tokens left in the step, blocks left in the cache, and tokens wanted."""
        sequence = chunk.sequence
        if sequence.guesses is None:
            return chunk
        most = min(room.tokens, sequence.request.max_tokens - sequence.num_output - 1)
        guesses = sequence.guesses.next(sequence.tokens, most)
        if not guesses or not self.cache.grow(sequence.table, sequence.num_tokens + len(guesses)):
            return chunk
        room.tokens -= len(guesses)
        return replace(chunk, guesses=tuple(guesses))

    def advance(self, chunk: Chunk) -> None:
        """Notes that `chunk` has been computed; its guesses do not count."""
        sequence = chunk.sequence
        sequence.num_scored += len(chunk.scored)
        sequence.num_computed += chunk.count
        self.cache.register(sequence.table, sequence.tokens, sequence.num_computed)

    def _decodes(self, budget: int) -> list[Chunk]:
        """One token for each decoding sequence, oldest first; the youngest make room when blocks run out."""
        decodes: list[Chunk] = []
        index = 0
        while index < len(self.running) and len(decodes) < budget:
            sequence = self.running[index]
            index += 1
            if sequence.is_prefilling:
                continue
            while not self.cache.grow(sequence.table, sequence.num_tokens):
                if self._preempt_youngest() is sequence:
                    return decodes
            decodes.append(Chunk(sequence, 1))
        return decodes

    def _preempt_youngest(self) -> Sequence:
        """Takes the blocks of the sequence that came last; it will be computed again (recompute preemption)."""
        sequence = self.running.pop()
        self.cache.release(sequence.table)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        self.preemptions += 1
        return sequence

    def _admit(self) -> bool:
        """Moves the first waiting sequence to the running ones, if there is a place and room for all its tokens.

        A block for each running sequence stays free, so that a newcomer does not push out at the next step what runs.
        """
        if not self.has_room:
            return False
        sequence = self.waiting[0]
        table = self.cache.begin(sequence.tokens, len(self.running), sequence.num_reusable)
        if table is None:
            return False
        self.waiting.popleft()
        sequence.table = table
        sequence.num_computed = table.registered * self.cache.block_size
        if sequence.first_scheduled is None:  # what it finds again after a preemption may be its own
            sequence.first_scheduled = time.monotonic()
            sequence.num_cached = sequence.num_computed
        self.running.append(sequence)
        return True
