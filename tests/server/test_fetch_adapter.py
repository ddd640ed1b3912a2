"""`fetch --adapter`: the two files of a LoRA adapter, into a folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.server.checkpoints import OTHER, SINGLE, files_in
from tests.server.fake_hub import FakeHub
from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.command import main
from triton_chat_server.fetch.files import RemoteFile
from triton_chat_server.fetch.selection import select, select_adapter

ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"weights" * 100}
BESIDE = {
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "README.md": b"#",
    "checkpoint-9/adapter_model.bin": b"",
}


@pytest.fixture
def run(hub: FakeHub, tmp_path: Path):
    def call(*options: str, repository: str = "org/tiny") -> int:
        return main(["hub", "--id", repository, "--endpoint", hub.url, "--target", str(tmp_path / "target"), *options])

    return call


def test_its_two_files_and_nothing_else(hub: FakeHub, run, tmp_path: Path) -> None:
    hub.repository().commit({**ADAPTER, **BESIDE, **OTHER})
    assert run("--adapter") == 0
    assert files_in(tmp_path / "target") == ADAPTER
    told = json.loads((tmp_path / "target" / ".triton-chat-fetch.json").read_text())
    assert told["source"] == {
        "kind": "hub", "endpoint": hub.url, "id": "org/tiny", "revision": "main", "content": "adapter",
    }  # fmt: skip


def test_a_second_run_does_nothing_and_needs_no_hub(hub: FakeHub, run, tmp_path: Path) -> None:
    hub.repository().commit(ADAPTER)
    assert run("--adapter") == 0
    hub.busy = 1000
    assert run("--adapter") == 0
    assert run("--adapter", "--verify") == 0
    assert files_in(tmp_path / "target") == ADAPTER


def test_a_checkpoint_of_the_same_repository_is_something_else(hub: FakeHub, run, tmp_path: Path) -> None:
    hub.repository().commit({**ADAPTER, **SINGLE})
    for options, files in (
        ((), {**SINGLE, "adapter_config.json": ADAPTER["adapter_config.json"]}),
        (("--adapter",), ADAPTER),
    ):
        assert run(*options) == 0
        assert files_in(tmp_path / "target") == files


def test_pickled_weights_are_converted_where_it_is_asked_for(hub: FakeHub, run, tmp_path: Path, caplog) -> None:
    torch.save({"a.lora_A.weight": torch.ones(2, 3)}, tmp_path / "w.bin")
    config = {"adapter_config.json": b"{}"}
    hub.repository().commit({**config, "adapter_model.bin": (tmp_path / "w.bin").read_bytes()})
    assert run("--adapter") == 1
    assert "only pickled weights (adapter_model.bin)" in caplog.text
    assert "use --convert" in caplog.text
    assert run("--adapter", "--convert") == 0
    assert files_in(tmp_path / "target").keys() == ADAPTER.keys()
    assert load_file(tmp_path / "target" / "adapter_model.safetensors")["a.lora_A.weight"].sum() == 6


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (set(), "adapter_config.json is missing: this is not a LoRA adapter"),
        ({"config.json", "model.safetensors"}, "adapter_config.json is missing"),
        ({"adapter_config.json"}, "adapter_model.safetensors is missing"),
        ({"adapter_config.json", "model.safetensors"}, "adapter_model.safetensors is missing"),
    ],
)
def test_what_is_no_adapter_is_refused(names: set[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        select_adapter({name: RemoteFile(name, 10) for name in names}, convert=True)


def test_who_forgets_the_flag_is_told_of_it() -> None:
    files = {name: RemoteFile(name, 10) for name in ADAPTER}
    with pytest.raises(CommandError, match="for a LoRA adapter use --adapter"):
        select(files, lambda _: b"", convert=False)
