from __future__ import annotations

from pathlib import Path

import pytest

from local.options import ROOT
from triton_chat_server.errors import CommandError
from triton_chat_server.models import chat_model_names
from triton_chat_server.serve.assembly import assemble, needed

SOURCE = ROOT / "model_repository"


def settings(folder: Path, *names: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.json").write_text("{}")
    return {"TRITON_CHAT_ENGINE_CONFIG": str(folder)}


class TestNames:
    def test_without_settings_and_with_a_file_it_is_chat(self, tmp_path: Path) -> None:
        assert chat_model_names({}) == ("chat",)
        (tmp_path / "engine.json").write_text("{}")
        assert chat_model_names({"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path / "engine.json")}) == ("chat",)

    def test_a_folder_has_one_for_each_file(self, tmp_path: Path) -> None:
        environment = settings(tmp_path, "qwen2.5-7b_v1", "chat")
        (tmp_path / "README.md").touch()
        (tmp_path / "..data").mkdir()
        (tmp_path / "..data.json").touch()
        assert chat_model_names(environment) == ("chat", "qwen2.5-7b_v1")

    def test_a_mounted_configmap(self, tmp_path: Path) -> None:
        data = tmp_path / "..2026_01_01"
        settings(data, "chat", "more")
        (tmp_path / "..data").symlink_to(data.name)
        for name in ("chat", "more"):
            (tmp_path / f"{name}.json").symlink_to(f"..data/{name}.json")
        assert chat_model_names({"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path)}) == ("chat", "more")

    @pytest.mark.parametrize("name", ["tokenizer", "embeddings", "chat_unary", "vllm_model", "a b", "-a", "é", "a;b"])
    def test_a_name_that_no_model_can_have(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(CommandError, match=f"the name '{name}' is not allowed for a chat model"):
            chat_model_names(settings(tmp_path, name))

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="no file or folder '/none' exists"):
            chat_model_names({"TRITON_CHAT_ENGINE_CONFIG": "/none"})
        with pytest.raises(CommandError, match=r"contains no <model name>\.json"):
            chat_model_names({"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path)})


def test_when_it_is_needed() -> None:
    assert not needed(("chat",), left_out=[])
    assert needed(("chat",), left_out=["embeddings"])
    assert needed(("chat",), left_out=["vllm_model"])
    assert needed(("chat", "more"), left_out=[])
    assert needed(("more",), left_out=[])


def models(folder: Path) -> set[str]:
    return {config.parent.name for config in folder.glob("*/config.pbtxt")}


class TestAssembled:
    def test_each_chat_model_has_its_name_and_the_same_code(self, tmp_path: Path) -> None:
        folder = assemble(SOURCE, ("chat", "more"), left_out=[], environment={"TRITON_CHAT_ASSEMBLY": f"{tmp_path}"})
        assert folder == tmp_path
        assert models(folder) == {"chat", "more", "chat_unary", "tokenizer", "embeddings", "vllm_model"}
        for name in ("chat", "more"):
            assert (folder / name / "1").resolve() == SOURCE / "chat" / "1"
            for path in ("config.pbtxt", "configs/cpu.pbtxt"):
                original = (SOURCE / "chat" / path).read_text()
                assert (folder / name / path).read_text() == original.replace('name: "chat"', f'name: "{name}"')
        for name in ("chat_unary", "tokenizer", "embeddings", "vllm_model"):
            assert (folder / name).resolve() == SOURCE / name

    @pytest.mark.parametrize("left_out", [["embeddings"], ["vllm_model"], ["embeddings", "vllm_model"]])
    def test_without_what_is_not_wanted(self, tmp_path: Path, left_out: list[str]) -> None:
        environment = {"TRITON_CHAT_ASSEMBLY": str(tmp_path)}
        found = models(assemble(SOURCE, ("chat",), left_out=left_out, environment=environment))
        assert found == {"chat", "chat_unary", "tokenizer", "embeddings", "vllm_model"} - set(left_out)

    def test_without_chat_nothing_forwards_to_it(self, tmp_path: Path) -> None:
        environment = {"TRITON_CHAT_ASSEMBLY": str(tmp_path)}
        assert models(assemble(SOURCE, ("more",), left_out=["embeddings"], environment=environment)) == {
            "more",
            "tokenizer",
        }

    def test_a_further_start_begins_anew(self, tmp_path: Path) -> None:
        environment = {"TRITON_CHAT_ASSEMBLY": str(tmp_path / "made")}
        assemble(SOURCE, ("chat", "more"), left_out=[], environment=environment)
        folder = assemble(SOURCE, ("other",), left_out=["embeddings"], environment=environment)
        assert models(folder) == {"other", "tokenizer"}
        assert models(SOURCE) == {"chat", "chat_unary", "tokenizer", "embeddings", "vllm_model"}

    def test_a_folder_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(CommandError, match="holds other files; choose an empty one"):
            assemble(SOURCE, ("more",), left_out=[], environment={"TRITON_CHAT_ASSEMBLY": str(tmp_path)})
        assert (tmp_path / "precious").exists()

    def test_by_default_in_a_temporary_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        folder = assemble(SOURCE, ("more",), left_out=[], environment={})
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_a_place_that_cannot_be_written(self) -> None:
        with pytest.raises(CommandError, match="the model repository could not be assembled"):
            assemble(SOURCE, ("more",), left_out=[], environment={"TRITON_CHAT_ASSEMBLY": "/proc/none"})
