"""`triton-chat-server serve` as a process, with a script in the place of tritonserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from local.options import ROOT
from triton_chat_server.serve import command, families

REPOSITORY = ROOT / "model_repository"
PROGRAM = """\
#!/bin/sh
trap 'exit 0' TERM
for argument in "$@"; do echo "$argument"; done
kill -TERM $PPID
while :; do sleep 0.05; done
"""
"""Says what it was given, and has itself stopped."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return f"{program.parent}:/bin:/usr/bin"


def serve(path: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "triton_chat_server", "serve", *arguments],
        env={"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_the_repository_as_it_is(path: str) -> None:
    done = serve(
        path, "--device", "gpu", "--http-port", "9000", "--log-verbose=1", TRITON_CHAT_REPOSITORY=f"{REPOSITORY}"
    )
    arguments = done.stdout.splitlines()
    assert arguments[0] == f"--model-repository={REPOSITORY}"
    assert arguments[-4:-1] == ["--http-port", "9000", "--log-verbose=1"]
    assert arguments[-1].startswith("--backend-config=python,shm-region-prefix-name=triton_chat_")
    assert "--model-config-name=cpu" not in arguments
    key = next(argument for argument in arguments if "restricted-api" in argument).rpartition("=")[2]
    assert "--http-port 9000" in done.stderr
    assert key not in done.stderr


@pytest.mark.parametrize(("pod_ip", "http"), [("10.1.2.3", "0.0.0.0"), ("fd00:10:244::5", "ipv6:::")])
def test_http_listens_on_the_family_of_the_pods_address(path: str, pod_ip: str, http: str) -> None:
    done = serve(path, "--repository", str(REPOSITORY), TRITON_CHAT_POD_IP=pod_ip)
    assert {f"--http-address={http}", f"--metrics-address={http}"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("has_ipv4", "has_ipv6", "address"),
    [(True, True, "0.0.0.0"), (True, False, "0.0.0.0"), (False, True, "::"), (False, False, "0.0.0.0")],
)
def test_without_a_pods_address_ipv6_is_taken_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, has_ipv4: bool, has_ipv6: bool, address: str
) -> None:
    routes = {socket.AF_INET: has_ipv4, socket.AF_INET6: has_ipv6}
    monkeypatch.setattr(families, "_has_route", routes.get)
    assert families.wildcard({}) == address


def test_a_cpu_where_there_is_no_gpu(path: str) -> None:
    done = serve(path, "--repository", str(REPOSITORY), CUDA_VISIBLE_DEVICES="")
    assert "--model-config-name=cpu" in done.stdout.splitlines()
    assert "no NVIDIA GPU is visible: on the CPU" in done.stderr


def test_nvidia_smi_is_not_asked_where_a_cpu_is_named(path: str, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    program.chmod(0o755)
    assert serve(path, "--repository", str(REPOSITORY), "--device=cpu").returncode == 0
    assert not (tmp_path / "asked").exists()


def test_an_assembled_one(path: str, tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "more.json").write_text("{}")
    done = serve(
        path, "--repository", str(REPOSITORY), "--device", "cpu", "--no-embeddings",
        TRITON_CHAT_ENGINE_CONFIG=str(tmp_path / "engine"), TMPDIR=str(tmp_path),
    )  # fmt: skip
    folder = Path(done.stdout.splitlines()[0].removeprefix("--model-repository="))
    assert folder.parent == tmp_path
    assert {config.parent.name for config in folder.glob("*/config.pbtxt")} == {"more", "tokenizer"}
    assert "chat models: more; no embeddings" in done.stderr


def test_without_the_door_for_clients_of_the_vllm_backend(path: str, tmp_path: Path) -> None:
    done = serve(path, "--repository", str(REPOSITORY), "--device", "cpu", "--no-vllm-model", TMPDIR=str(tmp_path))
    folder = Path(done.stdout.splitlines()[0].removeprefix("--model-repository="))
    assert {config.parent.name for config in folder.glob("*/config.pbtxt")} == {
        "chat", "chat_unary", "embeddings", "tokenizer",
    }  # fmt: skip
    assert "chat models: chat; no vllm_model" in done.stderr


def test_a_repository_given_to_tritonserver_is_served_as_it_is(path: str) -> None:
    done = serve(path, "--model-repository=/mine", "--device=cpu")
    assert [argument for argument in done.stdout.splitlines() if "model-repository" in argument] == [
        "--model-repository=/mine"
    ]


@pytest.mark.parametrize(
    ("arguments", "env", "sentence"),
    [
        (["--repository=/none"], {}, "/none is not the model repository of triton-chat; set it with --repository"),
        (["--model-repository=/mine", "--no-embeddings"], {}, "cannot be combined with --no-embeddings"),
        (["--model-repository=/mine", "--no-vllm-model"], {}, "--no-vllm-model or chat models of other names"),
        (["--model-repo=/mine"], {}, "--model-repo is an abbreviation"),
        ([], {"TRITON_CHAT_ENGINE_CONFIG": "/none"}, "no file or folder '/none' exists"),
        ([], {"PATH": "/nonexistent"}, "tritonserver is neither on PATH nor at /opt/tritonserver/bin/tritonserver"),
    ],
)
def test_refusals_are_one_line(path: str, arguments: list[str], env: dict[str, str], sentence: str) -> None:
    done = serve(env.pop("PATH", path), "--device=cpu", *arguments, **env)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_refusal_leaves_the_signals_of_the_process_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert command.main(["--device=cpu"]) == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
