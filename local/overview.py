"""What the launcher prints when all servers are ready: one command to copy for each endpoint."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from local import readiness
from local.options import ROOT, TritonOptions
from local.stack import LocalStack
from local.triton import LocalTriton


def overview(stack: LocalStack) -> str:
    triton, gateway, page = stack.triton, stack.gateway, stack.page
    chat = '{"model": "chat", "messages": [{"role": "user", "content": "Who are you?"}]}'
    generate = r'{"messages": "[{\"role\": \"user\", \"content\": \"Who are you?\"}]"}'
    key = '-H "Authorization: Bearer $OPENAI_API_KEY" ' if gateway.options.needs_key else ""
    return f"""
page     {page.url}

OpenAI   {gateway.openai_url}
  curl {quote(gateway.openai_url + "/chat/completions")} {key}-H 'Content-Type: application/json' -d '{chat}'

gRPC     {triton.grpc_address}
  .venv/bin/triton-chat ask{_url_option(triton)} "Who are you?"

Triton   {triton.http_url}
  curl -N {quote(triton.http_url + "/v2/models/chat/generate_stream")} -d '{generate}'

metrics  {triton.metrics_url}  {gateway.metrics_url}
  curl -s {quote(triton.metrics_url)} {quote(gateway.metrics_url)} | grep -E '^(gen_ai|triton_chat)'

logs     {_short(triton.options.log_path.parent)}
  tail -n +1 -F {" ".join(_short(server.options.log_path) for server in stack.servers)}

Press Ctrl-C to stop.
"""


def triton_overview(triton: LocalTriton) -> str:
    return f"""
models   {", ".join(readiness.models_in(triton.options.repository))}
Triton   {triton.http_url}
gRPC     {triton.grpc_address}
metrics  {triton.metrics_url}
log      {_short(triton.options.log_path)}

Press Ctrl-C to stop.
"""


def _url_option(triton: LocalTriton) -> str:
    default = f"{TritonOptions.host}:{TritonOptions.grpc_port}"
    return "" if triton.grpc_address == default else f" --url {quote(triton.grpc_address)}"


def _short(path: Path) -> str:
    return quote(str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path))
