from __future__ import annotations

import re
import threading
import weakref
from collections import Counter

import pytest

from chat_engine.protocol import EngineStats, RequestTimes
from chat_engine.request import FinishReason
from chat_engine.service import metrics as metrics_module
from chat_engine.service.metrics import FAMILIES, Family, MetricsReporter
from tests.chat_engine.builders import WAIT

NAMES = {family.name: family.kind for family in FAMILIES}
COUNTERS = {
    "triton_chat_prompt_tokens_total": "prompt_tokens",
    "triton_chat_generation_tokens_total": "generation_tokens",
    "triton_chat_prefix_cache_hit_tokens_total": "prefix_cache_hit_tokens",
    "triton_chat_preemptions_total": "preemptions",
    "triton_chat_drafted_tokens_total": "drafted_tokens",
    "triton_chat_accepted_tokens_total": "accepted_tokens",
    "triton_chat_engine_steps_total": "steps",
}
GAUGES = {
    "triton_chat_requests_running": "running",
    "triton_chat_requests_waiting": "waiting",
    "triton_chat_kv_cache_usage_ratio": "kv_cache_usage",
    "triton_chat_engine_last_step_timestamp_seconds": "last_step",
}
HEARTBEAT = "triton_chat_engine_heartbeat_timestamp_seconds"


class FakeMetric:
    """As strict as Triton's: each kind takes only its own calls, and a counter never goes back."""

    def __init__(self, family: Family, labels: dict[str, str]) -> None:
        self.family, self.labels = family, labels
        self.value = 0.0
        self.calls = 0
        self.observed: list[float] = []

    def increment(self, value: float) -> None:
        assert self.family.kind in ("counter", "gauge")
        assert value > 0
        self.calls += 1
        self.value += value

    def set(self, value: float) -> None:
        assert self.family.kind == "gauge"
        self.calls += 1
        self.value = value

    def observe(self, value: float) -> None:
        assert self.family.kind == "histogram"
        self.calls += 1
        self.observed.append(value)


class Board:
    """What `/metrics` would show."""

    def __init__(self, readings: list[EngineStats]) -> None:
        self._readings = readings
        self.reads = 0
        self.read_enough = threading.Event()
        self.metrics: dict[tuple[str, str], FakeMetric] = {}

    def read(self) -> EngineStats:
        now = self._readings[min(self.reads, len(self._readings) - 1)]
        self.reads += 1
        if self.reads >= len(self._readings):
            self.read_enough.set()
        return now

    def make(self, family: Family, labels: dict[str, str]) -> FakeMetric:
        key = family.name, labels.get("finish_reason", "")
        assert key not in self.metrics, "a metric is made once"
        self.metrics[key] = FakeMetric(family, labels)
        return self.metrics[key]

    def value(self, name: str, reason: str = "") -> float:
        return self.metrics[name, reason].value


@pytest.fixture(autouse=True)
def _only_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread reports at the end alone; tests call `report` themselves."""
    monkeypatch.setattr(metrics_module, "_INTERVAL_SECONDS", 3600)


def reporter(board: Board) -> MetricsReporter:
    return MetricsReporter(board.read, board.make, "m")


def test_names_follow_prometheus() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help


def test_buckets_rise_and_belong_to_histograms_alone() -> None:
    for family in FAMILIES:
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))


def test_every_metric_has_its_labels() -> None:
    board = Board([EngineStats()])
    reporter(board).close()
    assert {key[0] for key in board.metrics} == set(NAMES)
    assert {reason for name, reason in board.metrics if name == "triton_chat_requests_total"} == {
        "stop", "length", "tool_calls", "cancelled", "error"
    }  # fmt: skip
    for (_, reason), metric in board.metrics.items():
        assert metric.labels == {"model": "m", **({"finish_reason": reason} if reason else {})}


def test_counters_carry_the_difference_between_two_readings() -> None:
    first = EngineStats(
        prompt_tokens=10, generation_tokens=20, prefix_cache_hit_tokens=3, preemptions=1, steps=7, drafted_tokens=6
    )
    second = EngineStats(
        prompt_tokens=15,
        generation_tokens=20,
        prefix_cache_hit_tokens=4,
        preemptions=1,
        steps=9,
        drafted_tokens=9,
        accepted_tokens=2,
    )
    board = Board([first, second, second])
    reports = reporter(board)
    reports.report()
    assert {name: board.value(name) for name in COUNTERS} == {n: getattr(first, f) for n, f in COUNTERS.items()}
    reports.report()
    assert {name: board.value(name) for name in COUNTERS} == {n: getattr(second, f) for n, f in COUNTERS.items()}
    reports.close()
    assert {name: board.value(name) for name in COUNTERS} == {n: getattr(second, f) for n, f in COUNTERS.items()}


def test_ends_are_counted_by_reason() -> None:
    first = EngineStats(finished=Counter({FinishReason.STOP: 2, FinishReason.ERROR: 1}))
    second = EngineStats(finished=Counter({FinishReason.STOP: 5, FinishReason.ERROR: 1, FinishReason.CANCELLED: 4}))
    board = Board([first, second])
    reports = reporter(board)
    reports.report()
    reports.close()
    ends = {reason.value: board.value("triton_chat_requests_total", reason.value) for reason in FinishReason}
    assert ends == {"stop": 5, "length": 0, "tool_calls": 0, "cancelled": 4, "error": 1}


def test_gauges_follow_up_and_down() -> None:
    busy = EngineStats(running=3, waiting=2, kv_cache_usage=0.5, last_step=1234.5)
    idle = EngineStats(last_step=1235.0)
    board = Board([busy, idle])
    reports = reporter(board)
    for reading in (busy, idle):
        reports.report()
        assert {name: board.value(name) for name in GAUGES} == {n: getattr(reading, f) for n, f in GAUGES.items()}
    reports.close()


def test_times_are_observed_once_each_and_only_where_there_are_any() -> None:
    whole = RequestTimes(queue=0.1, first_token=0.2, per_output_token=0.03, total=1.0)
    never_ran = RequestTimes(queue=None, first_token=None, per_output_token=None, total=0.5)
    board = Board([EngineStats(times=[whole, never_ran]), EngineStats()])
    reports = reporter(board)
    reports.report()
    reports.close()
    observed = {name: board.metrics[name, ""].observed for name, kind in NAMES.items() if kind == "histogram"}
    assert observed == {
        "triton_chat_queue_seconds": [0.1],
        "gen_ai_server_time_to_first_token_seconds": [0.2],
        "gen_ai_server_time_per_output_token_seconds": [0.03],
        "gen_ai_server_request_duration_seconds": [1.0, 0.5],
    }


def test_no_heartbeat_of_what_does_not_work() -> None:
    board, works = Board([EngineStats()]), [False]
    reports = MetricsReporter(board.read, board.make, "m", works=lambda: works[0])
    reports.report()
    assert board.value(HEARTBEAT) == 0
    works[0] = True
    reports.close()
    assert board.value(HEARTBEAT) > 0


def test_nothing_new_costs_no_calls_but_the_heartbeat() -> None:
    board = Board([EngineStats(running=1, steps=4, last_step=9.0)])
    reports = reporter(board)
    reports.report()
    calls = {key: metric.calls for key, metric in board.metrics.items()}
    reports.report()
    reports.close()
    more = {key: metric.calls - calls[key] for key, metric in board.metrics.items() if metric.calls != calls[key]}
    assert more == {(HEARTBEAT, ""): 2}


def test_the_heart_beats_from_the_start_and_at_each_report(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board([EngineStats()])
    for second in (100.0, 101.0, 102.0):
        monkeypatch.setattr(metrics_module.time, "time", lambda now=second: now)
        if second == 100.0:
            reports = reporter(board)
        else:
            reports.report()
        assert board.value(HEARTBEAT) == second
    reports.close()


def test_a_reading_that_fails_stops_the_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> EngineStats:
        raise RuntimeError("the engine is gone")

    board = Board([EngineStats()])
    monkeypatch.setattr(metrics_module.time, "time", lambda: 100.0)
    reports = MetricsReporter(broken, board.make, "m")
    monkeypatch.setattr(metrics_module.time, "time", lambda: 200.0)
    reports.close()
    assert board.value(HEARTBEAT) == 100.0


def test_closing_reports_what_is_left() -> None:
    board = Board([EngineStats(steps=5)])
    reporter(board).close()
    assert board.value("triton_chat_engine_steps_total") == 5


def test_a_closed_reporter_holds_no_metric() -> None:
    """Triton takes them back from a living process alone."""
    board = Board([EngineStats()])
    reports = reporter(board)
    metric = weakref.ref(board.metrics.popitem()[1])
    assert metric() is not None
    board.metrics.clear()
    reports.close()
    assert metric() is None


def test_the_reporter_reads_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_INTERVAL_SECONDS", 0.001)
    board = Board([EngineStats(steps=n) for n in range(5)])
    reports = reporter(board)
    assert board.read_enough.wait(WAIT)
    reports.close()
    assert board.value("triton_chat_engine_steps_total") == 4


def test_a_reading_that_fails_does_not_end_the_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "_INTERVAL_SECONDS", 0.001)
    board = Board([EngineStats(steps=n) for n in range(5)])
    read, board_read = [], board.read

    def flaky() -> EngineStats:
        read.append(1)
        if len(read) == 1:
            raise RuntimeError("Triton is busy")
        return board_read()

    reports = MetricsReporter(flaky, board.make, "m")
    assert board.read_enough.wait(WAIT)
    reports.close()
    assert board.value("triton_chat_engine_steps_total") == 4
