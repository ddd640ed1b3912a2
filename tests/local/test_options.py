from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from chat_engine.config import EngineName
from local import ports
from local.options import DEFAULT_MODEL, ENVIRONMENTS, ROOT, GatewayOptions, PageOptions, StackOptions, TritonOptions
from local.preflight import PORT_NAMES
from tests.ipv6 import needs_ipv6


def test_defaults() -> None:
    options = TritonOptions.from_environment({})
    assert options.ports == (8000, 8001, 8002)
    assert options.host == "127.0.0.1"
    assert options.model == str(DEFAULT_MODEL)
    assert options.model_name == "tiny-chat"


def test_everything_from_the_environment(tmp_path: Path) -> None:
    options = TritonOptions.from_environment(
        {
            "TRITON_HOST": "0.0.0.0",
            "TRITON_HTTP_PORT": "9000",
            "TRITON_GRPC_PORT": "9001",
            "TRITON_METRICS_PORT": "0",
            "TRITON_CHAT_MODEL": "org/model",
            "TRITON_CHAT_ENGINE_CONFIG": str(tmp_path),
        }
    )
    assert options.ports == (9000, 9001, 0)
    assert options.host == "0.0.0.0"
    assert options.model == options.model_name == "org/model"
    assert options.engine_config == tmp_path


def test_each_engine_has_an_environment_of_its_own() -> None:
    native, vllm = (TritonOptions.from_environment({"TRITON_CHAT_ENGINE": name}) for name in ("", "vllm"))
    assert (native.engine, native.python_environment) == ("native", Path(sys.prefix))
    assert (vllm.engine, vllm.python_environment) == ("vllm", ROOT / ".venv-vllm")


def test_the_engines_are_those_of_the_settings() -> None:
    assert tuple(ENVIRONMENTS) == get_args(EngineName)
    with pytest.raises(ValueError, match=r"^ENGINE \(TRITON_CHAT_ENGINE\) must be native or vllm, not 'tgi'$"):
        TritonOptions.from_environment({"TRITON_CHAT_ENGINE": "tgi"})


def test_a_repository_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "config.pbtxt").touch()
    monkeypatch.chdir(tmp_path)
    options = TritonOptions.from_environment({"TRITON_HTTP_PORT": "1"}).with_repository(Path("mine"))
    assert options.repository == tmp_path / "mine"
    assert options.http_port == 1


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_repository_without_models_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the repository must be a folder with models"):
        TritonOptions().with_repository(tmp_path / name)


@pytest.mark.parametrize("text", ["http", "-1", "65536", "8000.5"])
def test_a_bad_port_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="TRITON_HTTP_PORT must be a port, 0 to 65535"):
        TritonOptions.from_environment({"TRITON_HTTP_PORT": text})


def test_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert TritonOptions.from_environment({"TRITON_CHAT_MODEL": "mine"}).model == str(tmp_path / "mine")


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ValueError, match=f"a folder that exists or a hub id, not '{model}'"):
        TritonOptions.from_environment({"TRITON_CHAT_MODEL": model})


def test_engine_settings_alone_name_their_own_model(tmp_path: Path) -> None:
    options = TritonOptions.from_environment({"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path / "engine.json")})
    assert options.model is None
    assert options.model_name.endswith("engine.json")


def test_the_whole_stack_from_the_environment() -> None:
    assert StackOptions.from_environment({}).ports == (8000, 8001, 8002, 9000, 8501)
    options = StackOptions.from_environment(
        {
            "GATEWAY_PORT": "9100",
            "UI_PORT": "0",
            "UI_HOST": "0.0.0.0",
            "TRITON_CHAT_GATEWAY_HOST": "192.168.0.2",
            "TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT": "5",
        }
    )
    assert options.gateway == GatewayOptions(port=9100, host="192.168.0.2", exit_timeout_s=5)
    assert options.page == PageOptions(port=0, host="0.0.0.0")


@pytest.mark.parametrize("variable", ["TRITON_CHAT_GATEWAY_API_KEYS", "TRITON_CHAT_GATEWAY_API_KEYS_FILE"])
def test_keys_are_known_to_be_needed(variable: str) -> None:
    assert GatewayOptions.from_environment({variable: "something"}).needs_key
    assert not GatewayOptions.from_environment({variable: ""}).needs_key


@pytest.mark.parametrize(
    ("variable", "text"), [("GATEWAY_PORT", "x"), ("UI_PORT", "99999"), ("TRITON_CHAT_GATEWAY_DRAIN_TIMEOUT", "1.5")]
)
def test_a_bad_value_of_the_doors_is_named(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{variable} must be .*, not '{text}'$"):
        StackOptions.from_environment({variable: text})


def test_a_port_given_twice_is_named_with_both_variables() -> None:
    with pytest.raises(ValueError, match=r"^port 9000 is set for GATEWAY_PORT and UI_PORT; each needs its own port"):
        StackOptions.from_environment({"UI_PORT": "9000"})
    anywhere = StackOptions.from_environment(dict.fromkeys(PORT_NAMES, "0"))
    assert anywhere.ports == (0, 0, 0, 0, 0)


def test_addresses_of_either_family() -> None:
    hosts = {"TRITON_HOST": "[::1]", "TRITON_CHAT_GATEWAY_HOST": "::", "UI_HOST": "0::0"}
    options = StackOptions.from_environment(hosts)
    assert (options.triton.host, options.gateway.host, options.page.host) == ("::1", "::", "::")
    assert TritonOptions.from_environment({"TRITON_HOST": "localhost"}).host == "127.0.0.1"
    assert GatewayOptions.from_environment({"TRITON_CHAT_GATEWAY_HOST": "localhost"}).host == "localhost"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TRITON_HOST", "my-machine"),
        ("TRITON_HOST", "[::1]:8000"),
        ("TRITON_CHAT_GATEWAY_HOST", "127.0.0.1:9000"),
        ("UI_HOST", "[::1]:8501"),
    ],
)
def test_what_is_no_address_is_refused_by_name(variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{variable} must be an address, such as 127.0.0.1, ::1 or ::"):
        StackOptions.from_environment({variable: value})


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "::"])
def test_free_ports_of_ipv6(host: str) -> None:
    assert len({*ports.choose(host, (0, 0, 0)), 0}) == 4


def test_free_ports_differ_and_given_ones_stay() -> None:
    http, grpc, metrics = ports.choose("127.0.0.1", (0, 8001, 0))
    assert grpc == 8001
    assert len({http, grpc, metrics, 0}) == 4
