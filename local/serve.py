"""Serves in the foreground until Ctrl-C."""

from __future__ import annotations

import time

import typer

from local import console
from local.settings import ROOT, TritonSettings
from local.triton import LocalTriton

POLL_S = 0.5


def run() -> None:
    console.end_on_signals()
    settings = console.read_settings()
    console.require_preflight(settings)
    try:
        with console.started(settings) as server:
            console.out.print(doors(server), markup=False)
            _wait_for_its_end(server)
    except KeyboardInterrupt:
        console.out.print("Stopped.")


def doors(server: LocalTriton) -> str:
    """One line to copy for each way in."""
    url = "" if server.settings.grpc_port == TritonSettings.grpc_port else f" --url {server.grpc_address}"
    messages = r'{"messages": "[{\"role\": \"user\", \"content\": \"Who are you?\"}]"}'
    log = server.settings.log_path
    return f"""
gRPC     {server.grpc_address}
  .venv/bin/triton-chat ask{url} "Who are you?"

HTTP     {server.http_url}
  curl -N {server.http_url}/v2/models/chat/generate_stream -d '{messages}'

metrics  {server.metrics_url}
  curl -s {server.metrics_url} | grep -E '^(gen_ai|triton_chat)'

log      {log.relative_to(ROOT) if log.is_relative_to(ROOT) else log}

Ctrl-C stops it.
"""


def _wait_for_its_end(server: LocalTriton) -> None:
    while (code := server.poll()) is None:
        time.sleep(POLL_S)
    console.err.print(f"tritonserver died (exit code {code}); its last words:\n{server.log_tail()}", markup=False)
    raise typer.Exit(1)
