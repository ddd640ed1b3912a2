"""What `make serve` prints when all is ready: one line to copy for each way in."""

from __future__ import annotations

import shlex
from pathlib import Path

from local.settings import ROOT, TritonSettings
from local.stack import LocalStack
from local.triton import LocalTriton


def overview(stack: LocalStack) -> str:
    triton, gateway, page = stack.triton, stack.gateway, stack.page
    chat = '{"model": "chat", "messages": [{"role": "user", "content": "Who are you?"}]}'
    generate = r'{"messages": "[{\"role\": \"user\", \"content\": \"Who are you?\"}]"}'
    key = '-H "Authorization: Bearer $OPENAI_API_KEY" ' if gateway.settings.needs_key else ""
    return f"""
page     {page.url}

OpenAI   {gateway.openai_url}
  curl {gateway.openai_url}/chat/completions {key}-H 'Content-Type: application/json' -d '{chat}'

gRPC     {triton.grpc_address}
  .venv/bin/triton-chat ask{_url_option(triton)} "Who are you?"

Triton   {triton.http_url}
  curl -N {triton.http_url}/v2/models/chat/generate_stream -d '{generate}'

metrics  {triton.metrics_url}  {gateway.metrics_url}
  curl -s {triton.metrics_url} {gateway.metrics_url} | grep -E '^(gen_ai|triton_chat)'

logs     {_short(triton.settings.log_path.parent)}
  tail -n +1 -F {" ".join(_short(server.settings.log_path) for server in stack.servers)}

Ctrl-C stops it.
"""


def _url_option(triton: LocalTriton) -> str:
    return "" if triton.settings.grpc_port == TritonSettings.grpc_port else f" --url {triton.grpc_address}"


def _short(path: Path) -> str:
    return shlex.quote(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))
