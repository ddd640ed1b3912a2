"""What live and ready mean. A check returns quietly, or raises UnhealthyError with the reason."""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from triton_chat_server.probe.exposition import by_model

HEARTBEAT = "triton_chat_engine_heartbeat_timestamp_seconds"
RUNNING = "triton_chat_requests_running"
LAST_STEP = "triton_chat_engine_last_step_timestamp_seconds"

SILENT_S = 30.0
"""A model's process reports twice a second. The supervisor notices a silent one sooner; this is for what it misses, and
goes by a clock that a pause of the machine does not stop."""

READY_SILENT_S = 5.0
"""A pod that is only taken out of its Service comes back by itself, so this may be short."""

STALL_S = 120.0
"""Longer than any forward pass takes; a GPU that hangs never comes back."""

_TIMEOUT_S = 3.0


class UnhealthyError(Exception):
    """The reason, in one line."""


def live(http_url: str, metrics_url: str, models: Sequence[str], stall_s: float, silent_s: float) -> None:
    """tritonserver answers, and each of the chat models reports, and makes steps while it has sequences running."""
    _expect_ok(http_url, "/v2/health/live", "tritonserver is not live")
    text = _get(metrics_url).text
    now = time.time()
    running, steps = by_model(text, RUNNING), by_model(text, LAST_STEP)
    for model in models:
        _expect_heartbeat(text, model, silent_s)
        still = now - steps.get(model, now)
        if running.get(model, 0) > 0 and still > stall_s:
            raise UnhealthyError(f"the model {model!r} has running sequences, but has made no step for {still:.0f} s")


def ready(http_url: str, metrics_url: str, models: Sequence[str], silent_s: float) -> None:
    """tritonserver and each of the chat models say that they are ready, and each of these reports."""
    _expect_ok(http_url, "/v2/health/ready", "tritonserver is not ready")
    for model in models:
        _expect_ok(http_url, f"/v2/models/{model}/ready", f"the model {model!r} is not ready")
    text = _get(metrics_url).text
    for model in models:
        _expect_heartbeat(text, model, silent_s)


def _expect_heartbeat(text: str, model: str, silent_s: float) -> None:
    heartbeat = by_model(text, HEARTBEAT).get(model)
    if heartbeat is None:
        raise UnhealthyError(f"the model {model!r} has no metrics")
    silent = time.time() - heartbeat
    if silent > silent_s:
        raise UnhealthyError(f"the process of the model {model!r} has sent no heartbeat for {silent:.0f} s")


class _Answer:
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


def _expect_ok(base_url: str, path: str, otherwise: str) -> None:
    answer = _get(base_url.rstrip("/") + path)
    if answer.status != http.client.OK:
        raise UnhealthyError(f"{otherwise}: HTTP status {answer.status}")


def _get(url: str) -> _Answer:
    """Without urllib.request, whose import takes longer than the rest, and without proxies: it is this machine."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        return _Answer(response.status, response.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException) as error:
        raise UnhealthyError(f"{url} does not answer: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()
