"""Pickled weights: a real Llama of a few kilobytes, saved as .bin, fetched, converted and loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.server.checkpoints import files_in
from tests.server.fake_hub import FakeHub
from triton_chat_server.errors import CommandError
from triton_chat_server.fetch import convert, run
from triton_chat_server.fetch.convert import to_safetensors
from triton_chat_server.fetch.hub import HubSource
from triton_chat_server.fetch.parts import FOLDER
from triton_chat_server.fetch.run import fetch

BIN = ["pytorch_model.bin"]


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, dtype="bfloat16",
        )
    ).to(torch.bfloat16)  # fmt: skip


def pickled(tensors: Mapping[str, Tensor], folder: Path, **options: bool) -> bytes:
    path = folder / "one.bin"
    torch.save(dict(tensors), path, **options)
    return path.read_bytes()


def published(model: LlamaForCausalLM, folder: Path, shards: int, **options: bool) -> dict[str, bytes]:
    """As the hub has models from before safetensors."""
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    state = model.state_dict()
    if shards == 1:
        return files | {BIN[0]: pickled(state, folder, **options)}
    names = [f"pytorch_model-{index:05d}-of-{shards:05d}.bin" for index in range(1, shards + 1)]
    weight_map = {name: names[place % shards] for place, name in enumerate(state)}
    for shard in names:
        files[shard] = pickled({n: t for n, t in state.items() if weight_map[n] == shard}, folder, **options)
    return files | {"pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_model_is_the_same(hub: FakeHub, tmp_path: Path, shards: int, tied: bool, zipped: bool) -> None:
    original = llama(tied)
    work, target = tmp_path / "work", tmp_path / "target"
    work.mkdir()
    hub.repository().commit(published(original, work, shards, _use_new_zipfile_serialization=zipped))
    fetch(HubSource("org/tiny", "main", hub.url), target, convert_bins=True)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        target, use_safetensors=True, dtype="auto", output_loading_info=True
    )
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(loaded(ids).logits, original(ids).logits)
    assert not [name for name in files_in(target) if name.endswith(".bin") or "bin.index" in name]

    found = json.loads((target / ".triton-chat-fetch.json").read_text())
    assert found["complete"]
    assert found["files"].keys() == files_in(target).keys()
    asked = len(hub.downloads)
    fetch(HubSource("org/tiny", "main", hub.url), target, convert_bins=True, verify=True)
    assert len(hub.downloads) == asked


def test_safetensors_are_preferred(hub: FakeHub, tmp_path: Path) -> None:
    hub.repository().commit({"config.json": b"{}", "model.safetensors": b"good", "pytorch_model.bin": b"old"})
    fetch(HubSource("org/tiny", "main", hub.url), tmp_path / "target", convert_bins=True)
    assert files_in(tmp_path / "target").keys() == {"config.json", "model.safetensors"}


def test_a_conversion_that_was_interrupted_is_done_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    hub.repository().commit(published(llama(), tmp_path / "work", 3))
    source, target = HubSource("org/tiny", "main", hub.url), tmp_path / "target"
    save_file, saved = convert.save_file, []

    def dies_at_the_second(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        saved.append(path)
        save_file(tensors, path, metadata=metadata)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_file", dies_at_the_second)
    with pytest.raises(CommandError, match="No space left on device"):
        fetch(source, target, convert_bins=True)
    monkeypatch.undo()
    asked = len([download for download in hub.downloads if download.path.endswith(".bin")])
    fetch(source, target, convert_bins=True)
    assert asked == 3 == len([download for download in hub.downloads if download.path.endswith(".bin")])
    assert AutoModelForCausalLM.from_pretrained(target, use_safetensors=True)


def test_what_an_interrupted_conversion_left_takes_no_space_of_the_next(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    files = published(llama(), tmp_path / "work", 3)
    bins = sum(len(data) for name, data in files.items() if name.endswith(".bin"))
    disk = sum(map(len, files.values())) + bins  # both forms, and not a byte more
    hub.repository().commit(files)
    source, target = HubSource("org/tiny", "main", hub.url), tmp_path / "target"

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk - sum(map(len, files_in(target).values())))

    monkeypatch.setattr(run.shutil, "disk_usage", usage)
    save_file = convert.save_file

    def dies_at_the_last(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, path, metadata=metadata)
        if path.name.startswith("model-00003"):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(convert, "save_file", dies_at_the_last)
        with pytest.raises(CommandError, match="No space left on device"):
            fetch(source, target, convert_bins=True)
    assert len(list(target.glob("*.safetensors"))) == 2
    fetch(source, target, convert_bins=True)
    assert AutoModelForCausalLM.from_pretrained(target, use_safetensors=True)


class TestTensors:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / FOLDER).mkdir()
        return tmp_path

    def converted(self, state: object, folder: Path) -> dict[str, Tensor]:
        torch.save(state, folder / BIN[0])
        to_safetensors(folder, BIN, ["model.safetensors"])
        return load_file(folder / "model.safetensors")

    def test_views_and_shared_memory_become_tensors_of_their_own(self, folder: Path) -> None:
        base = torch.arange(12.0).reshape(3, 4)
        state = {"base": base, "same": base, "row": base[1], "turned": base.t(), "empty": torch.zeros(0)}
        found = self.converted(state, folder)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
    def test_types_stay(self, folder: Path, dtype: torch.dtype) -> None:
        assert self.converted({"a": torch.ones(3, dtype=dtype)}, folder)["a"].dtype == dtype

    @pytest.mark.parametrize("state", [[torch.ones(1)], {"state_dict": {"a": torch.ones(1)}}, {"a": 1}])
    def test_other_things_are_refused(self, folder: Path, state: object) -> None:
        with pytest.raises(CommandError, match=r"pytorch_model\.bin is not a plain dictionary of tensors"):
            self.converted(state, folder)

    def test_code_does_not_run(self, folder: Path) -> None:
        class Harmful:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (folder / "ran",)

        (folder / BIN[0]).write_bytes(pickle.dumps({"a": Harmful()}, protocol=2))
        with pytest.raises(CommandError, match="it is damaged or contains code"):
            to_safetensors(folder, BIN, ["model.safetensors"])
        assert not (folder / "ran").exists()

    @pytest.mark.parametrize(
        "text",
        [
            b"", b"hello\n", b"<html></html>", b"{}", b'["a"]', b"I am text", b"\x80", b"\0" * 100, b"PK\x03\x04 no",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            *(bytes([first]) + b"nothing at all\n" for first in range(0x20, 0x7F)),
        ],
    )  # fmt: skip
    def test_text_is_refused(self, folder: Path, text: bytes) -> None:
        (folder / BIN[0]).write_bytes(text)
        with pytest.raises(CommandError, match=r"pytorch_model\.bin (cannot be read|is not a plain dictionary)"):
            to_safetensors(folder, BIN, ["model.safetensors"])

    def test_half_a_file_is_refused(self, folder: Path) -> None:
        torch.save({"a": torch.ones(1000)}, folder / BIN[0])
        (folder / BIN[0]).write_bytes((folder / BIN[0]).read_bytes()[:2000])
        with pytest.raises(CommandError, match="it is damaged"):
            to_safetensors(folder, BIN, ["model.safetensors"])
