"""vLLM's numbers, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


@dataclass(frozen=True)
class Step:
    """What one step of one core has left.

    Attributes:
        running, waiting: requests in that core.
        usage: part of its KV cache that is used, 0 to 1.
        preemptions: requests that were put back in it.
        drafted, accepted: tokens that speculative decoding has proposed, and the model taken.
    """

    running: int = 0
    waiting: int = 0
    usage: float = 0.0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0


class Steps:
    """Hears of each step of vLLM, on its event loop, and passes it on to the engine once there is one.

    With data parallelism there are several cores.
    """

    def __init__(self) -> None:
        self.listener: Callable[[list[Step], Step], None] | None = None
        self._cores: dict[int, Step] = {}

    def logger(self, _config: Any, core: int = 0) -> StatLoggerBase:
        """What vLLM makes for each core."""
        self._cores[core] = Step()
        return _Logger(core, self)

    def forget(self) -> None:
        """Nothing runs in any core: after an abort none makes a step that would say so."""
        self._cores = dict.fromkeys(self._cores, Step())

    def note(self, core: int, scheduler: Any, iteration: Any) -> None:
        """Takes in a step, as vLLM tells it."""
        if scheduler is None:
            return
        drafts = scheduler.spec_decoding_stats
        step = Step(
            running=scheduler.num_running_reqs,
            waiting=scheduler.num_waiting_reqs + scheduler.num_skipped_waiting_reqs,
            usage=scheduler.kv_cache_usage,
            preemptions=iteration.num_preempted_reqs if iteration else 0,
            drafted=drafts.num_draft_tokens if drafts else 0,
            accepted=drafts.num_accepted_tokens if drafts else 0,
        )
        self._cores[core] = step
        if self.listener:
            self.listener(list(self._cores.values()), step)


class _Logger(StatLoggerBase):  # type: ignore[misc]
    def __init__(self, core: int, steps: Steps) -> None:
        self._core = core
        self._steps = steps

    def record(self, scheduler_stats: Any, iteration_stats: Any, **_more: Any) -> None:
        self._steps.note(self._core, scheduler_stats, iteration_stats)

    def log_engine_initialized(self) -> None:
        pass
