"""How many threads compute a step on a CPU."""

from __future__ import annotations

import os

import torch

# Reading the weights takes most of the time of a step of so few rows, and one core less reads about as fast.
_FEW_ROWS = 8


class StepThreads:
    """Where the threads would occupy every core, steps of few rows leave one to Triton and the gateway.

    They have as much to do for each token of a few streams as the model has, and a thread that waits for them at the
    end of each product makes all others wait.
    """

    def __init__(self, device: torch.device, cores: int | None = None) -> None:
        """Of a pass on this device, by the number that torch has now; on a GPU there is nothing to choose."""
        cores = len(os.sched_getaffinity(0)) if cores is None else cores
        self._all = torch.get_num_threads()
        self._few = max(1, self._all - 1) if device.type == "cpu" and self._all >= cores else self._all

    def choose(self, rows: int) -> None:
        """For the step of so many rows that comes next."""
        wanted = self._few if rows <= _FEW_ROWS else self._all
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
