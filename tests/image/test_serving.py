"""The three containers together, each locked down: nothing but what the images bring."""

from __future__ import annotations

import json

import pytest

from tests.image.containers import Container, Containers

USER = "10001"
NO_CAPABILITIES = "0" * 16


def test_a_chat_is_streamed_through_the_gateway_to_the_openai_package(gateway: Container) -> None:
    chunks = gateway.script("openai_stream.py", "9000", "Who are you?", json.dumps({"temperature": 0}))
    assert "tiny-chat" in "".join(chunk["text"] for chunk in chunks)
    assert sum(bool(chunk["text"]) for chunk in chunks) > 5
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == ["stop"]


def test_the_command_line_is_in_the_image_of_the_gateway(gateway: Container) -> None:
    assert "tiny-chat" in gateway("triton-chat", "ask", "Who are you?", "--temperature", "0")
    assert "live yes, ready yes" in gateway("triton-chat", "status")


def test_all_models_of_the_repository_are_served(gateway: Container) -> None:
    status = gateway("triton-chat", "status")
    assert all(name in status for name in ("chat", "chat_unary", "embeddings", "tokenizer", "vllm_model"))


def test_the_page_answers(ui: Container) -> None:
    assert "<title>" in (ui.fetch("http://127.0.0.1:8501/") or "")
    assert "external IP" not in ui.log()  # which Streamlit would ask a server outside for


def test_every_healthcheck_succeeds(triton: Container, gateway: Container, ui: Container) -> None:
    assert [container.is_healthy() for container in (triton, gateway, ui)] == [True, True, True]


@pytest.mark.parametrize("kind", ["live", "ready"])
def test_the_probes_of_a_cluster_succeed(triton: Container, kind: str) -> None:
    triton("triton-chat-server", "probe", kind)


def test_a_gateway_without_triton_is_not_healthy(ui: Container, containers: Containers) -> None:
    settings = {"TRITON_URL": "127.0.0.1:1", "PORT": "9001"}
    alone = containers.gateway(ui, *(f"--env=TRITON_CHAT_GATEWAY_{name}={value}" for name, value in settings.items()))
    while not alone.fetch("http://127.0.0.1:9001/health/live"):
        assert alone.state["Status"] == "running", alone.log()
    assert not alone.is_healthy()


def test_each_listens_to_callers_from_everywhere(triton: Container, gateway: Container, ui: Container) -> None:
    assert triton.script("listening.py")[0] == [8000, 8001, 8002, 8501, 9000]


@pytest.mark.parametrize("name", ["triton", "gateway", "ui"])
def test_no_process_is_root_or_has_a_capability(name: str, request: pytest.FixtureRequest) -> None:
    processes = request.getfixturevalue(name).script("processes.py")[0]
    assert processes
    for process in processes:
        assert set(process["Uid"].split() + process["Gid"].split()) == {USER}, process
        assert process["CapEff"] == process["CapBnd"] == NO_CAPABILITIES, process
        assert process["NoNewPrivs"] == "1", process


@pytest.mark.parametrize("name", ["triton", "gateway", "ui"])
def test_only_the_temporary_folder_can_be_written_to(name: str, request: pytest.FixtureRequest) -> None:
    folders = request.getfixturevalue(name).script("writable.py")[0]
    assert "/tmp" in folders
    assert [folder for folder in folders if not folder.startswith("/tmp")] == []
