"""Which tokens the grammars of a batch forbid, found out by other threads while the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher
from torch import Tensor

from chat_engine.native.sampler import Masks, SamplingState

_WORD = 32  # tokens in one word of a bit mask
_BITS = [1 << bit for bit in range(8)]


class MaskFiller:
    """Fills the bit masks of a step.

    Args:
        vocab_size: of the model.
        device: where the logits are.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._words = -(-vocab_size // _WORD)
        self._buffer = torch.empty(0, self._words, dtype=torch.int32)
        self._thread = ThreadPoolExecutor(1, "masks")  # starts when first used
        self._executor: LLExecutor | None = None

    @contextmanager
    def filling(self, rows: Sequence[SamplingState]) -> Iterator[Masks | None]:
        """The masks of those rows that have a grammar, on their way; None where there are none."""
        guided = [(i, row, matcher) for i, row in enumerate(rows) if row.guide and (matcher := row.guide.matcher)]
        if not guided:
            yield None
            return
        # Before the other threads have the matchers.
        ends = [
            (place, token)
            for place, (_, row, matcher) in enumerate(guided)
            if matcher.is_accepting()
            for token in row.stop_ids
        ]
        words = self._room(len(guided))
        matchers = [matcher for *_, matcher in guided]
        filled: Future[Tensor] = self._thread.submit(self._fill, matchers, words)

        def forbidden() -> tuple[list[int], Tensor]:
            mask = self._on_device(filled.result())
            if ends:
                index = torch.tensor(ends, device=self._device)
                mask[index[:, 0], index[:, 1]] = False
            alive = [place for place, matcher in enumerate(matchers) if not matcher.is_error()]
            mask = mask if len(alive) == len(matchers) else mask[alive]
            return [guided[place][0] for place in alive], mask

        try:
            yield Masks(forbidden)
        finally:
            filled.exception()  # nobody else may touch the matchers before

    def _room(self, rows: int) -> Tensor:
        if len(self._buffer) < rows:
            self._buffer = torch.empty(rows, self._words, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        return self._buffer[:rows]

    @torch.inference_mode()  # as the thread that has made the buffer
    def _fill(self, matchers: list[LLMatcher], words: Tensor) -> Tensor:
        """A bit for each token that is forbidden; for a CPU a byte, which is made here while the model computes."""
        if self._executor is None:
            self._executor = LLExecutor()
        rows = [(matcher, place) for place, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(rows, words.data_ptr(), 4 * self._words, len(rows))
        words.bitwise_not_()
        if self._device.type != "cpu":
            return words
        octets = words.numpy().view(np.uint8)
        return torch.from_numpy(np.unpackbits(octets, axis=1, count=self._vocab_size, bitorder="little"))

    def _on_device(self, filled: Tensor) -> Tensor:
        """`[rows, vocab]`, bool. The buffer is free again once the step's tokens have been read."""
        if self._device.type == "cpu":
            return filled.view(torch.bool)
        octets = filled.to(self._device, non_blocking=True).view(torch.uint8)
        bits = torch.tensor(_BITS, dtype=torch.uint8, device=self._device)
        return (octets[:, :, None] & bits).ne(0).flatten(1)[:, : self._vocab_size]
