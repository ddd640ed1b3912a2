"""`status` and `models`: how the server is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from triton_chat import metrics
from triton_chat.channel import parse_url
from triton_chat.cli import exits, tables, terminal
from triton_chat.cli.answers import connected
from triton_chat.cli.options import Connection
from triton_chat.errors import EngineError, ServerUnavailableError
from triton_chat.types import ModelInfo, ServerInfo

_UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Load:
    """What `/metrics` says about one model; None where it says nothing."""

    queued: float | None
    """Requests in Triton's queue."""
    waiting: float | None
    """Requests taken by the engine that have not begun."""
    running: float | None
    kv_cache_usage_ratio: float | None
    tokens_per_s: float | None


def models(connection: Connection) -> None:
    """List the models."""
    with connected(connection) as client:
        found = client.models()
    if connection.as_json:
        terminal.write_json([asdict(model) for model in found])
        return
    table = tables.table("model", "version", "state", "ready", "adapters", "reason")
    for model in found:
        adapters = ", ".join(adapter.name for adapter in model.adapters)
        state = model.state or "NOT LOADED"
        table.add_row(model.name, model.version, state, _yes(model.ready), adapters, model.reason)
    tables.console().print(table)


def status(connection: Connection, metrics_url: str | None, watch: bool, interval: float) -> None:
    """Show health and load once, or again and again.

    Raises:
        EngineError: it was asked once, and the server is not ready.
    """
    url = metrics_url or f"http://{_bracketed(parse_url(connection.url).host)}:8002/metrics"
    with exits.remembered_interrupt() as raise_if_interrupted:
        ready = _show(connection, url, interval)
        while watch:
            raise_if_interrupted()
            ready = _show(connection, url, interval)
    if not ready:
        raise EngineError("the server is not ready")


def _show(connection: Connection, metrics_url: str, interval: float) -> bool:
    with connected(connection) as client:
        server = client.server_metadata()
        found = client.models()
    load = _load(metrics_url, found, interval)
    if connection.as_json:
        loads = {name: asdict(values) for name, values in load.items()}
        terminal.write_json(
            {"server": asdict(server), "models": [asdict(model) | {"load": loads.get(model.name)} for model in found]}
        )
    else:
        _print(server, found, load)
    return server.ready


def _load(url: str, found: list[ModelInfo], interval: float) -> dict[str, Load]:
    """Two reads of the metrics, `interval` seconds apart."""
    try:
        earlier = metrics.fetch(url)
        time.sleep(interval)
        page = metrics.fetch(url)
    except (ServerUnavailableError, EngineError) as error:
        exits.say(f"note: {error}; --metrics-url names another address")
        return {}
    return {model.name: _model_load(page, earlier, model.name) for model in found}


def _model_load(page: metrics.MetricsPage, earlier: metrics.MetricsPage, model: str) -> Load:
    return Load(
        queued=page.total("nv_inference_pending_request_count", model=model),
        waiting=page.total("triton_chat_requests_waiting", model=model),
        running=page.total("triton_chat_requests_running", model=model),
        kv_cache_usage_ratio=page.total("triton_chat_kv_cache_usage_ratio", model=model),
        tokens_per_s=page.rate_since(earlier, "triton_chat_generation_tokens_total", model=model),
    )


def _print(server: ServerInfo, found: list[ModelInfo], load: dict[str, Load]) -> None:
    console = tables.console()
    console.print(f"{server.name} {server.version}: live {_yes(server.live)}, ready {_yes(server.ready)}")
    table = tables.table("model", "version", "ready", "queued", "waiting", "running", "KV cache", "tokens/s")
    for model in found:
        values = load.get(model.name, Load(None, None, None, None, None))
        table.add_row(
            model.name,
            model.version,
            _yes(model.ready),
            _count(values.queued),
            _count(values.waiting),
            _count(values.running),
            _UNKNOWN if values.kv_cache_usage_ratio is None else f"{values.kv_cache_usage_ratio:.0%}",
            _UNKNOWN if values.tokens_per_s is None else f"{values.tokens_per_s:.1f}",
        )
    console.print(table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:g}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
