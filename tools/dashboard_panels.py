"""What the dashboard shows: rows of panels, each with its queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

_RELEASE: Final = 'namespace="$namespace", release="$release", track=~"$track"'
_MODEL: Final = f'{_RELEASE}, model=~"$model"'
_API: Final = f'{_RELEASE}, route=~"/v1/.*|/tokenize|/detokenize"'
_QUANTILES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's; `limits` are where a value turns orange and red."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    description: str = ""
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    limits: tuple[float, ...] = ()
    width: int = 8
    height: int = 8
    from_zero: bool = True


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def _rate(metric: str, labels: str = _MODEL, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def _quantile(quantile: float, histogram: str, labels: str = _MODEL, by: str = "model") -> str:
    rates = _rate(f"{histogram}_bucket", labels, f"{by}, le" if by else "le")
    return f"histogram_quantile({quantile:g}, {rates})"


def _quantiles(histogram: str) -> tuple[Query, ...]:
    return tuple(Query(_quantile(q, histogram), f"{{{{model}}}} p{100 * q:g}") for q in _QUANTILES)


def _stat(title: str, unit: str, expression: str, *limits: float, description: str = "") -> Panel:
    return Panel(title, unit, (Query(expression),), description, "stat", limits, width=4, height=4)


def _total(metric: str, labels: str = _MODEL) -> str:
    return f"sum(rate({metric}{{{labels}}}[$__rate_interval]))"


_OVERVIEW = Row(
    "Overview",
    (
        _stat(
            "Triton pods", "none", f'sum(up{{{_RELEASE}, container="triton"}})',
            description="Pods that Prometheus can reach.",
        ),
        _stat("Requests", "reqps", _total("triton_chat_requests_total")),
        _stat("Output tokens", "none", _total("triton_chat_generation_tokens_total"), description="Per second."),
        _stat("First token, p95", "s", _quantile(0.95, "gen_ai_server_time_to_first_token_seconds", by=""), 2.5, 10),
        _stat(
            "Errors", "percentunit",
            _total("triton_chat_requests_total", f'{_MODEL}, finish_reason="error"')
            + " / " + _total("triton_chat_requests_total"),
            0.01, 0.05, description="Share of the requests accepted by the engine that ended with an error.",
        ),
        _stat("KV cache, fullest pod", "percentunit", f"max(triton_chat_kv_cache_usage_ratio{{{_MODEL}}})", 0.8, 0.95),
    ),
)  # fmt: skip

_TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests by finish reason", "reqps",
            (Query(_rate("triton_chat_requests_total", by="model, finish_reason"), "{{model}} {{finish_reason}}"),),
            "Requests accepted by the engine. Refused ones are under Queue and KV cache.",
        ),
        Panel(
            "Tokens per second", "none",
            (
                Query(_rate("triton_chat_generation_tokens_total"), "{{model}} output"),
                Query(_rate("triton_chat_prompt_tokens_total"), "{{model}} prompt"),
                Query(_rate("triton_chat_prefix_cache_hit_tokens_total"), "{{model}} prompt, cached"),
            ),
            "Prompt tokens are counted when a request ends.",
        ),
        Panel(
            "Sequences", "none",
            (
                Query(f"sum by (model) (triton_chat_requests_running{{{_MODEL}}})", "{{model}} running"),
                Query(f"sum by (model) (triton_chat_requests_waiting{{{_MODEL}}})", "{{model}} waiting in the engine"),
            ),
        ),
    ),
)  # fmt: skip

_LATENCY = Row(
    "Latency",
    (
        Panel("Time to first token", "s", _quantiles("gen_ai_server_time_to_first_token_seconds")),
        Panel("Time per output token", "s", _quantiles("gen_ai_server_time_per_output_token_seconds")),
        Panel("Request duration", "s", _quantiles("gen_ai_server_request_duration_seconds")),
        Panel(
            "Time to first token, all requests", "none",
            (Query(_rate("gen_ai_server_time_to_first_token_seconds_bucket", by="le"), "{{le}}"),),
            "Requests per second by time to first token.", "heatmap", width=16,
        ),
        Panel(
            "Time in the engine before the first step", "s", _quantiles("triton_chat_queue_seconds"),
            "Excludes the wait in Triton's own queue.",
        ),
    ),
)  # fmt: skip

_CAPACITY = Row(
    "Queue and KV cache",
    (
        Panel(
            "Triton's queue", "none",
            (Query(f"sum by (model, pod) (nv_inference_pending_request_count{{{_MODEL}}})", "{{model}} {{pod}}"),),
            "Requests waiting for a slot in the engine.", limits=(16, 128),
        ),
        Panel(
            "Requests refused", "reqps",
            (
                Query(
                    _rate("nv_inference_request_failure", f'{_MODEL}, reason="REJECTED"'), "{{model}} queue timeout"
                ),
                Query(_total("triton_chat_gateway_requests_total", f'{_RELEASE}, status="429"'), "429 at the gateway"),
            ),
            "The gateway answers 429 when a request times out in the queue and when the queue is full; Triton may not "
            "count the latter.",
        ),
        Panel(
            "KV cache in use", "percentunit",
            (Query(f"max by (model, pod) (triton_chat_kv_cache_usage_ratio{{{_MODEL}}})", "{{model}} {{pod}}"),),
            "Used by running sequences. Blocks kept for prefix caching count as free.", limits=(0.8, 0.95),
        ),
        Panel(
            "Prefix cache hit rate", "percentunit",
            (
                Query(
                    _rate("triton_chat_prefix_cache_hit_tokens_total")
                    + " / " + _rate("triton_chat_prompt_tokens_total"),
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            "Preemptions per second", "none", (Query(_rate("triton_chat_preemptions_total"), "{{model}}"),),
            "Sequences sent back to the queue because KV blocks ran out; they are computed again.",
        ),
        Panel(
            "Time since the last step and heartbeat", "s",
            (
                Query(
                    f"time() - triton_chat_engine_last_step_timestamp_seconds{{{_MODEL}}}"
                    f" and triton_chat_requests_running{{{_MODEL}}} > 0",
                    "{{model}} {{pod}} step (while sequences run)",
                ),
                Query(
                    f"time() - triton_chat_engine_heartbeat_timestamp_seconds{{{_MODEL}}}",
                    "{{model}} {{pod}} heartbeat",
                ),
            ),
            limits=(30, 60),
        ),
        Panel("Forward passes per second", "none", (Query(_rate("triton_chat_engine_steps_total"), "{{model}}"),)),
    ),
)  # fmt: skip

_GATEWAY = Row(
    "Gateway",
    (
        Panel(
            "Requests by status", "reqps",
            (Query(_rate("triton_chat_gateway_requests_total", _API, "status"), "{{status}}"),),
            "429: Triton's queue was full. 499: the caller disconnected before the answer was complete.",
        ),
        Panel(
            "Duration, p95", "s",
            (Query(_quantile(0.95, "triton_chat_gateway_request_duration_seconds", _API, "route"), "{{route}}"),),
        ),
        Panel(
            "Time to first chunk, p95", "s",
            (Query(_quantile(0.95, "triton_chat_gateway_time_to_first_chunk_seconds", _API, "route"), "{{route}}"),),
        ),
        Panel(
            "Open requests and streams", "none",
            (
                Query(f"sum(triton_chat_gateway_open_requests{{{_RELEASE}}})", "requests"),
                Query(f"sum by (route) (triton_chat_gateway_open_streams{{{_API}}})", "streams of {{route}}"),
            ),
        ),
        Panel(
            "Bytes per second", "Bps",
            (
                Query(_total("triton_chat_gateway_request_bytes_total", _API), "in"),
                Query(_total("triton_chat_gateway_response_bytes_total", _API), "out"),
            ),
        ),
        Panel(
            "Memory", "bytes",
            (Query(f'process_resident_memory_bytes{{{_RELEASE}, container="gateway"}}', "{{pod}}"),),
        ),
    ),
)  # fmt: skip

_EMBEDDINGS = Row(
    "Embeddings",
    (
        Panel("Texts per second", "none", (Query(_rate("triton_chat_embeddings_texts_total", _RELEASE), "{{model}}"),)),
        Panel(
            "Tokens per second", "none",
            (Query(_rate("triton_chat_embeddings_tokens_total", _RELEASE), "{{model}}"),),
        ),
        Panel(
            "Batch duration, p95", "s",
            (Query(_quantile(0.95, "triton_chat_embeddings_batch_duration_seconds", _RELEASE), "{{model}}"),),
        ),
    ),
)  # fmt: skip

_GPU = Row(
    "GPU",
    (
        Panel(
            "Utilisation", "percentunit", (Query(f"nv_gpu_utilization{{{_RELEASE}}}", "{{pod}} {{gpu_uuid}}"),),
            "Share of time in which a kernel was running on the GPU.",
        ),
        Panel(
            "Memory in use", "percentunit",
            (
                Query(
                    f"nv_gpu_memory_used_bytes{{{_RELEASE}}} / nv_gpu_memory_total_bytes{{{_RELEASE}}}",
                    "{{pod}} {{gpu_uuid}}",
                ),
            ),
            limits=(0.95, 0.97),
        ),
        Panel("Power", "watt", (Query(f"nv_gpu_power_usage{{{_RELEASE}}}", "{{pod}} {{gpu_uuid}}"),)),
    ),
)  # fmt: skip

ROWS: Final = (_OVERVIEW, _TRAFFIC, _LATENCY, _CAPACITY, _GATEWAY, _EMBEDDINGS, _GPU)
