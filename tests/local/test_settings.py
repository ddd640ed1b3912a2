from __future__ import annotations

from pathlib import Path

import pytest

from local import ports
from local.settings import DEFAULT_MODEL, TritonSettings


def test_defaults() -> None:
    settings = TritonSettings.from_environment({})
    assert settings.ports == (8000, 8001, 8002)
    assert settings.host == "127.0.0.1"
    assert settings.model == str(DEFAULT_MODEL)
    assert settings.model_name == "tiny-chat"


def test_everything_from_the_environment(tmp_path: Path) -> None:
    settings = TritonSettings.from_environment(
        {
            "TRITON_HOST": "0.0.0.0",
            "TRITON_HTTP_PORT": "9000",
            "TRITON_GRPC_PORT": "9001",
            "TRITON_METRICS_PORT": "0",
            "TRITON_CHAT_MODEL": "org/model",
            "TRITON_CHAT_ENGINE_CONFIG": str(tmp_path),
        }
    )
    assert settings.ports == (9000, 9001, 0)
    assert settings.host == "0.0.0.0"
    assert settings.model == settings.model_name == "org/model"
    assert settings.engine_config == tmp_path


@pytest.mark.parametrize("text", ["http", "-1", "65536", "8000.5"])
def test_a_bad_port_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="TRITON_HTTP_PORT must be a port, 0 to 65535"):
        TritonSettings.from_environment({"TRITON_HTTP_PORT": text})


def test_a_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert TritonSettings.from_environment({"TRITON_CHAT_MODEL": "mine"}).model == str(tmp_path / "mine")


@pytest.mark.parametrize("model", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ValueError, match=f"a folder that exists or a hub id, not '{model}'"):
        TritonSettings.from_environment({"TRITON_CHAT_MODEL": model})


def test_engine_settings_alone_name_their_own_model(tmp_path: Path) -> None:
    settings = TritonSettings.from_environment({"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path / "engine.json")})
    assert settings.model is None
    assert settings.model_name.endswith("engine.json")


def test_free_ports_differ_and_given_ones_stay() -> None:
    http, grpc, metrics = ports.choose("127.0.0.1", (0, 8001, 0))
    assert grpc == 8001
    assert len({http, grpc, metrics, 0}) == 4
