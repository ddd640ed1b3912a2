"""The metric families, and the thread that carries the engine's numbers into them.

Names follow OpenTelemetry's GenAI conventions where one exists. A call into Triton costs as much as many tokens, so the
engine only counts; a reporter passes the numbers on a few times a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from chat_engine.protocol import EngineStats
from chat_engine.request import FinishReason

log = logging.getLogger(__name__)

_INTERVAL_SECONDS = 0.5
_LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True)
class Family:
    """A metric family: what `# HELP` and `# TYPE` say, and the buckets of a histogram in seconds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    buckets: tuple[float, ...] = ()


TIME_TO_FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds", "histogram", "From arrival to the first token", _LATENCY_BUCKETS
)
TIME_PER_OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds", "histogram", "Mean time per token after the first", _TOKEN_BUCKETS
)
REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds", "histogram", "From arrival to the last token", _DURATION_BUCKETS
)
QUEUE = Family(
    "triton_chat_queue_seconds", "histogram", "From arrival in the model to the first step", _LATENCY_BUCKETS
)
PROMPT_TOKENS = Family("triton_chat_prompt_tokens_total", "counter", "Prompt tokens of requests that ended")
GENERATION_TOKENS = Family("triton_chat_generation_tokens_total", "counter", "Tokens generated")
PREFIX_HITS = Family(
    "triton_chat_prefix_cache_hit_tokens_total", "counter", "Prompt tokens served from the prefix cache"
)
PREEMPTIONS = Family("triton_chat_preemptions_total", "counter", "Sequences put back because KV blocks ran out")
DRAFTED = Family("triton_chat_drafted_tokens_total", "counter", "Tokens that speculative decoding has proposed")
ACCEPTED = Family("triton_chat_accepted_tokens_total", "counter", "Proposed tokens that the model has accepted")
STEPS = Family("triton_chat_engine_steps_total", "counter", "Forward passes")
REQUESTS = Family("triton_chat_requests_total", "counter", "Requests that the engine took and that ended, by how")
RUNNING = Family("triton_chat_requests_running", "gauge", "Sequences being generated")
WAITING = Family("triton_chat_requests_waiting", "gauge", "Sequences in the engine that wait for KV blocks or a place")
KV_USAGE = Family("triton_chat_kv_cache_usage_ratio", "gauge", "Used part of the KV cache, 0 to 1")
LAST_STEP = Family(
    "triton_chat_engine_last_step_timestamp_seconds", "gauge", "When the last forward pass ended, or idleness did"
)
HEARTBEAT = Family("triton_chat_engine_heartbeat_timestamp_seconds", "gauge", "When the model's process last reported")

FAMILIES = (
    TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN, REQUEST_DURATION, QUEUE,
    PROMPT_TOKENS, GENERATION_TOKENS, PREFIX_HITS, PREEMPTIONS, DRAFTED, ACCEPTED, STEPS, REQUESTS,
    RUNNING, WAITING, KV_USAGE, LAST_STEP, HEARTBEAT,
)  # fmt: skip


class Metric(Protocol):
    """One labelled metric of Triton's Python backend."""

    def increment(self, value: float) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, value: float) -> None: ...


class MetricsReporter:
    """Reads the engine every half second, and once more at `close`; each time the heartbeat is set.

    Args:
        read: gives the engine's numbers.
        make: makes the metric of a family with the given labels.
        model: value of the label `model`.
        works: no heartbeat is set while it says no.
    """

    def __init__(
        self,
        read: Callable[[], EngineStats],
        make: Callable[[Family, dict[str, str]], Metric],
        model: str,
        works: Callable[[], bool] = lambda: True,
    ) -> None:
        self._read = read
        self._works = works
        self._metrics = {family.name: make(family, {"model": model}) for family in FAMILIES if family is not REQUESTS}
        self._requests = {
            reason: make(REQUESTS, {"model": model, "finish_reason": reason.value}) for reason in FinishReason
        }
        self._known = EngineStats()
        self._beat()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reports what is left, stops, and lets go of the metrics while Triton can still take them back."""
        self._closing.set()
        self._thread.join()
        self._metrics.clear()
        self._requests.clear()

    def report(self) -> None:
        """Carries one reading over."""
        now, known = self._read(), self._known
        self._known = now
        self._count(PROMPT_TOKENS, now.prompt_tokens - known.prompt_tokens)
        self._count(GENERATION_TOKENS, now.generation_tokens - known.generation_tokens)
        self._count(PREFIX_HITS, now.prefix_cache_hit_tokens - known.prefix_cache_hit_tokens)
        self._count(PREEMPTIONS, now.preemptions - known.preemptions)
        self._count(DRAFTED, now.drafted_tokens - known.drafted_tokens)
        self._count(ACCEPTED, now.accepted_tokens - known.accepted_tokens)
        self._count(STEPS, now.steps - known.steps)
        for reason, metric in self._requests.items():
            if more := now.finished[reason] - known.finished[reason]:
                metric.increment(more)
        self._set(RUNNING, now.running, known.running)
        self._set(WAITING, now.waiting, known.waiting)
        self._set(KV_USAGE, now.kv_cache_usage, known.kv_cache_usage)
        self._set(LAST_STEP, now.last_step, known.last_step)
        for times in now.times:
            self._observe(QUEUE, times.queue)
            self._observe(TIME_TO_FIRST_TOKEN, times.first_token)
            self._observe(TIME_PER_OUTPUT_TOKEN, times.per_output_token)
            self._observe(REQUEST_DURATION, times.total)
        self._beat()

    def _beat(self) -> None:
        """Triton keeps the last value of a process that is gone, so a gauge that stops rising shows it."""
        if self._works():
            self._metrics[HEARTBEAT.name].set(time.time())

    def _count(self, family: Family, more: int) -> None:
        if more:
            self._metrics[family.name].increment(more)

    def _set(self, family: Family, value: float, known: float) -> None:
        if value != known:
            self._metrics[family.name].set(value)

    def _observe(self, family: Family, seconds: float | None) -> None:
        if seconds is not None:
            self._metrics[family.name].observe(seconds)

    def _loop(self) -> None:
        while not self._closing.wait(_INTERVAL_SECONDS):
            self._try_report()
        self._try_report()

    def _try_report(self) -> None:
        """One reading that fails, or that Triton does not take, must not end the metrics."""
        try:
            self.report()
        except Exception:
            log.exception("the metrics could not be reported")
