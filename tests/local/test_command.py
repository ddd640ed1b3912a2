from __future__ import annotations

import sys
from pathlib import Path

from local import command, install
from local.install import TritonInstall
from local.options import DEFAULT_MODEL, ROOT, TritonOptions

INSTALL = TritonInstall(Path("/t/tritonserver"), Path("/t/backends"), Path("/t/lib"))
SETTINGS = TritonOptions(repository=Path("/models"), http_port=1, grpc_port=2, metrics_port=3)


def test_without_a_gpu_the_cpu_configurations_are_chosen() -> None:
    assert "--model-config-name=cpu" in command.server_command(SETTINGS, INSTALL, gpu=False, shm_prefix="x_")
    assert "--model-config-name=cpu" not in command.server_command(SETTINGS, INSTALL, gpu=True, shm_prefix="x_")


def test_ports_and_addresses() -> None:
    arguments = command.server_command(SETTINGS, INSTALL, gpu=False, shm_prefix="x_")
    assert arguments[1:4] == ["-m", "triton_chat_server.supervise", "/t/tritonserver"]
    assert {"--http-port=1", "--grpc-port=2", "--metrics-port=3"} <= set(arguments)
    assert {f"--{door}-address=127.0.0.1" for door in ("http", "grpc", "metrics")} <= set(arguments)
    assert "--backend-config=python,shm-region-prefix-name=x_" in arguments


def test_ipv6_in_tritonservers_spelling() -> None:
    options = TritonOptions(repository=Path("/models"), host="::1", http_port=1, grpc_port=2, metrics_port=3)
    arguments = command.server_command(options, INSTALL, gpu=False, shm_prefix="x_")
    assert {"--http-address=ipv6:::1", "--grpc-address=[::1]", "--metrics-address=ipv6:::1"} <= set(arguments)


def test_all_models_or_the_named_ones() -> None:
    assert "--model-control-mode=none" in command.server_command(SETTINGS, INSTALL, gpu=False, shm_prefix="")
    some = TritonOptions(models=("chat", "embeddings"), extra_args=("--log-verbose=1",))
    arguments = command.server_command(some, INSTALL, gpu=False, shm_prefix="")
    assert {"--model-control-mode=explicit", "--load-model=chat", "--load-model=embeddings"} <= set(arguments)
    assert arguments[-1] == "--log-verbose=1"


def test_the_environment_puts_ours_first_and_keeps_the_rest() -> None:
    inherited = {"LD_LIBRARY_PATH": "/cuda", "PATH": "/bin", "HOME": "/home/me"}
    environment = command.server_environment(SETTINGS, INSTALL, inherited)
    assert environment["LD_LIBRARY_PATH"] == "/t/lib:/cuda"
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert environment["PYTHONPATH"].endswith("site-packages")
    assert environment["TRITON_CHAT_MODEL"] == str(DEFAULT_MODEL)
    assert environment["HOME"] == "/home/me"
    assert "TRITON_CHAT_ENGINE_CONFIG" not in environment


def test_vllm_has_all_models_run_in_its_environment() -> None:
    options = TritonOptions(engine="vllm")
    environment = command.server_environment(options, INSTALL, {"PATH": "/bin", "PYTHONPATH": "/mine"})
    folder = ROOT / ".venv-vllm"
    major, minor = sys.version_info[:2]
    assert environment["PATH"] == f"{folder}/bin:/bin"
    assert environment["PYTHONPATH"] == f"{folder}/lib/python{major}.{minor}/site-packages:/mine"
    assert environment["TRITON_CHAT_ENGINE"] == "vllm"


def test_the_engine_of_the_settings_stays_unless_another_is_asked_for() -> None:
    assert "TRITON_CHAT_ENGINE" not in command.server_environment(SETTINGS, INSTALL, {})
    inherited = {"TRITON_CHAT_ENGINE": "native"}
    assert command.server_environment(SETTINGS, INSTALL, inherited)["TRITON_CHAT_ENGINE"] == "native"


def test_extra_environment_wins() -> None:
    options = TritonOptions(engine_config=Path("/engine.json"), extra_env={"TRITON_CHAT_MODEL": "org/model"})
    environment = command.server_environment(options, INSTALL, {})
    assert environment["TRITON_CHAT_MODEL"] == "org/model"
    assert environment["TRITON_CHAT_ENGINE_CONFIG"] == "/engine.json"


def test_the_backend_folder_holds_the_stub_and_libpython_alone(tmp_path: Path) -> None:
    found = install.prepare(tmp_path)
    names = {path.name for path in (found.backends / "python").iterdir()}
    assert names == {"libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py"}
    major, minor = sys.version_info[:2]
    assert [path.name for path in found.libraries.iterdir()] == [f"libpython{major}.{minor}.so.1.0"]
    assert install.prepare(tmp_path) == found
