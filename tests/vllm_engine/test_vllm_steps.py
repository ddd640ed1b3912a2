"""What several cores tell of their steps, taken together. No engine is started."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed in this Python")
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from chat_engine.vllm.steps import Step, Steps


def heard() -> tuple[Steps, list[tuple[list[Step], Step]]]:
    steps, told = Steps(), []
    steps.listener = lambda cores, step: told.append((cores, step))
    for core in (0, 1):
        steps.logger(None, core)
    return steps, told


def test_a_core_that_has_made_no_step_counts_as_empty() -> None:
    steps, told = heard()
    steps.note(1, SchedulerStats(num_running_reqs=3, num_waiting_reqs=2, kv_cache_usage=0.5), None)
    assert told == [([Step(), Step(3, 2, 0.5)], Step(3, 2, 0.5))]


def test_nothing_runs_in_any_core_once_that_is_said() -> None:
    steps, told = heard()
    steps.note(0, SchedulerStats(num_running_reqs=3), None)
    steps.forget()
    steps.note(1, SchedulerStats(num_running_reqs=1), None)
    assert told[-1][0] == [Step(), Step(running=1)]


def test_proposed_and_accepted_tokens_are_those_of_the_step() -> None:
    steps, told = heard()
    drafts = SpecDecodingStats.new(3)
    drafts.observe_draft(num_draft_tokens=3, num_accepted_tokens=2)
    steps.note(0, SchedulerStats(spec_decoding_stats=drafts), None)
    assert (told[-1][1].drafted, told[-1][1].accepted) == (3, 2)
