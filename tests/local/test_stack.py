"""What the gateway and the page are told, and what their user is told of them."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from local.display import Readiness
from local.gateway import LocalGateway
from local.options import ROOT, RUN_LOGS, GatewayOptions, PageOptions, StackOptions, TritonOptions
from local.overview import overview
from local.page import LocalPage
from local.stack import LocalStack
from tests.local.stand_in import StandIn

ANY_PORTS = StackOptions(
    triton=TritonOptions(http_port=0, grpc_port=0, metrics_port=0),
    gateway=GatewayOptions(port=0),
    page=PageOptions(port=0),
)


def test_the_gateway_gets_the_users_settings_and_the_launchers_on_top() -> None:
    gateway = LocalGateway(GatewayOptions(port=9100, extra_env={"A": "1"}), "127.0.0.1:8001")
    environment = gateway.environment(
        {"TRITON_CHAT_GATEWAY_ALIASES": '{"gpt": "chat"}', "TRITON_CHAT_GATEWAY_PORT": "1", "A": "0"}
    )
    assert environment["TRITON_CHAT_GATEWAY_ALIASES"] == '{"gpt": "chat"}'
    assert environment["TRITON_CHAT_GATEWAY_PORT"] == "9100"
    assert environment["TRITON_CHAT_GATEWAY_TRITON_URL"] == "127.0.0.1:8001"
    assert environment["TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT"] == "30"
    assert environment["A"] == "1"


def test_the_page_is_told_where_the_gateway_is() -> None:
    page = LocalPage(PageOptions(port=8600, host="0.0.0.0"), "http://127.0.0.1:9100")
    assert page.url == "http://127.0.0.1:8600"
    assert {"--server.port=8600", "--server.address=0.0.0.0"} <= set(page.command())
    assert page.environment({})["TRITON_CHAT_UI_GATEWAY_URL"] == "http://127.0.0.1:9100"


def test_the_stack_is_wired_up_on_ports_of_its_own() -> None:
    stack = LocalStack(ANY_PORTS)
    assert stack.gateway.triton_url == stack.triton.grpc_address
    assert stack.page.gateway_url == stack.gateway.url
    ports = {*stack.triton.options.ports, stack.gateway.options.port, stack.page.options.port, 0}
    assert len(ports) == 6


@pytest.mark.parametrize(
    ("host", "triton", "others"),
    [("0.0.0.0", "127.0.0.1", "127.0.0.1"), ("::1", "[::1]", "[::1]"), ("::", "[::1]", "127.0.0.1")],
)
def test_where_a_client_finds_them(host: str, triton: str, others: str) -> None:
    options = StackOptions(
        triton=TritonOptions(host=host), gateway=GatewayOptions(host=host), page=PageOptions(host=host)
    )
    stack = LocalStack(options)
    assert (stack.triton.http_url, stack.triton.grpc_address) == (f"http://{triton}:8000", f"{triton}:8001")
    assert (stack.gateway.url, stack.page.url) == (f"http://{others}:9000", f"http://{others}:8501")
    assert f"--server.address={host}" in stack.page.command()
    assert ("--url" in overview(stack)) == (triton == "[::1]")


def test_the_overview_has_every_door() -> None:
    stack = LocalStack(ANY_PORTS)
    text = overview(stack)
    doors = (stack.page.url, stack.gateway.openai_url, stack.triton.grpc_address, stack.triton.http_url)
    logs = (server.options.log_path.name for server in stack.servers)
    for part in (*doors, stack.triton.metrics_url, stack.gateway.metrics_url, *logs):
        assert part in text
    assert f'triton-chat ask --url {stack.triton.grpc_address} "Who are you?"' in text
    assert "--url" not in overview(LocalStack(StackOptions()))


def test_the_logs_are_those_of_this_run_and_can_be_followed() -> None:
    stack = LocalStack(ANY_PORTS)
    paths = [server.options.log_path for server in stack.servers]
    text = overview(stack)
    assert f"logs     {RUN_LOGS.relative_to(ROOT)}\n" in text
    command = shlex.split(line_with("tail", text))
    assert [ROOT / argument for argument in command[-3:]] == paths


def test_the_curl_example_survives_a_shell() -> None:
    command = shlex.split(line_with("curl http", overview(LocalStack(StackOptions()))))
    assert command[:2] == ["curl", "http://127.0.0.1:9000/v1/chat/completions"]
    assert command[command.index("-H") + 1] == "Content-Type: application/json"
    assert json.loads(command[-1])["model"] == "chat"


def test_the_curl_example_shows_a_key_where_one_is_needed() -> None:
    locked = overview(LocalStack(StackOptions(gateway=GatewayOptions(needs_key=True))))
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in line_with("curl http", locked)


def test_the_display_has_a_line_for_each_server(tmp_path: Path) -> None:
    with StandIn("page", tmp_path) as page, StandIn("gateway", tmp_path) as gateway:
        gateway.kill()
        output = io.StringIO()
        Console(file=output, width=60).print(Readiness([StandIn("triton", tmp_path), gateway, page]))
    lines = output.getvalue().splitlines()
    assert "triton" in lines[0]
    assert "0.0 s  starting" in lines[0]
    assert lines[1].startswith("✗  gateway")
    assert lines[2].startswith("✓  page")
    assert lines[2].split()[-1] == "ready"


def line_with(text: str, lines: str) -> str:
    return next(line for line in lines.splitlines() if text in line)
