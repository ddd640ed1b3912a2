"""How many threads compute a step on a CPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

_TRIED = (1, 2, 4, 8)
_REPEATS = 3
# What Triton, the gateway and this process do for a token that is streamed.
_DOORS_S = 0.0005


class StepThreads:
    """Where the threads would occupy every core, steps of few rows leave one to Triton and the gateway, if that pays.

    Where the weights are read about as fast by one core less, these have as much to do for each token of a few streams
    as the model has, and a thread that waits for them at the end of each product makes all others wait. Where products
    take long, as in 32 bits without AVX-512, every core is worth more.
    """

    def __init__(self, device: torch.device, cores: int | None = None) -> None:
        """Of a pass on this device, by the number that torch has now; on a GPU there is nothing to choose."""
        cores = len(os.sched_getaffinity(0)) if cores is None else cores
        self._all = torch.get_num_threads()
        self._few = max(1, self._all - 1) if device.type == "cpu" and self._all >= cores else self._all
        self._few_rows = 0

    def learn(self, seconds: Callable[[int], float]) -> None:
        """Finds out up to how many rows a step leaves a core; `seconds` computes one of so many."""
        if self._few == self._all:
            return
        for rows in _TRIED:
            with_all = self._fastest(seconds, rows, few_rows=0)
            with_few = self._fastest(seconds, rows, few_rows=rows)
            if with_few > with_all + rows * _DOORS_S:
                self._few_rows = rows // 2
                break
        log.info("steps of up to %d rows leave a core to others", self._few_rows)

    def choose(self, rows: int) -> None:
        """For the step of so many rows that comes next."""
        wanted = self._few if rows <= self._few_rows else self._all
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)

    def _fastest(self, seconds: Callable[[int], float], rows: int, few_rows: int) -> float:
        self._few_rows = few_rows
        return min(seconds(rows) for _ in range(_REPEATS))
