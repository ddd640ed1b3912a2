from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from chat_engine.config import EngineConfig, load_config, parse_config
from chat_engine.errors import ConfigError


def write(path: Path, settings: object) -> Path:
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "1"
    folder.mkdir()
    write(folder / "engine.json", {"model": "beside-the-code"})
    return folder


def test_every_setting_but_the_model_has_a_default() -> None:
    assert parse_config({"model": "m"}).model == "m"
    with pytest.raises(ConfigError, match="model: Field required"):
        parse_config({})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parse_config({"model": "m"}).max_sequences = 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", ""),
        ("model", 7),
        ("dtype", "int8"),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("threads", 0),
        ("max_model_len", 1),
        ("max_sequences", 0),
        ("max_sequences", True),
        ("max_sequences", "8"),
        ("max_sequences", 8.0),
        ("queue_room", -1),
        ("max_step_tokens", 0),
        ("block_size", 0),
        ("kv_cache_tokens", 1),
        ("memory_fraction", 0),
        ("memory_fraction", 1),
        ("memory_fraction", 1.5),
        ("memory_fraction", float("nan")),
        ("prefix_caching", "yes"),
        ("prefix_caching", 1),
        ("default_max_tokens", 0),
        ("max_logprobs", -1),
        ("max_stop_length", 0),
        ("stall_seconds", 0),
        ("stall_seconds", float("nan")),
        ("drain_seconds", -1),
        ("drain_seconds", float("inf")),
        ("drain_seconds", float("nan")),
    ],
)
def test_a_bad_value_is_refused_by_name_and_value(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model": "m", key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_sequence: Extra inputs are not permitted"):
        parse_config({"model": "m", "max_sequence": 4})


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model": "m", "threads": 0, "colour": "red"}, "the file")
    assert str(caught.value).startswith("the file: ")
    assert "threads" in str(caught.value)
    assert "colour" in str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    assert parse_config({"model": "m", "device": device}).device == device


def test_settings_stand_beside_the_code_unless_the_environment_says_otherwise(version: Path) -> None:
    assert load_config("chat", version, {}, env={}).model == "beside-the-code"


def test_the_environment_names_a_file(version: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {"model": "from-the-file"})
    assert load_config("chat", version, {}, {"TRITON_CHAT_ENGINE_CONFIG": str(path)}).model == "from-the-file"


def test_the_environment_names_a_folder_with_a_file_per_model(version: Path, tmp_path: Path) -> None:
    for name in ("chat", "other"):
        write(tmp_path / f"{name}.json", {"model": f"for-{name}"})
    env = {"TRITON_CHAT_ENGINE_CONFIG": str(tmp_path)}
    assert load_config("chat", version, {}, env).model == "for-chat"
    assert load_config("other", version, {}, env).model == "for-other"
    with pytest.raises(ConfigError, match="third"):
        load_config("third", version, {}, env)


def test_the_model_variable_replaces_the_checkpoint_of_chat_alone(version: Path) -> None:
    env = {"TRITON_CHAT_MODEL": "another"}
    assert load_config("chat", version, {}, env).model == "another"
    assert load_config("other", version, {}, env).model == "beside-the-code"


def test_overrides_fill_in_only_what_the_settings_leave_out(version: Path) -> None:
    assert load_config("chat", version, {"device": "cpu"}, {}).device == "cpu"
    write(version / "engine.json", {"model": "m", "device": "cuda:1"})
    assert load_config("chat", version, {"device": "cpu"}, {}).device == "cuda:1"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("{", "not JSON"), ("[]", "JSON object"), ('"x"', "JSON object"), ("", "not JSON"), ("\ud800", "not JSON")],
)
def test_a_file_that_is_no_json_object_is_refused(version: Path, content: str, complaint: str) -> None:
    (version / "engine.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=complaint):
        load_config("chat", version, {}, {})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config("chat", tmp_path, {}, {})


def test_the_settings_in_the_repository_are_valid() -> None:
    version = Path(__file__).parents[2] / "model_repository" / "chat" / "1"
    assert isinstance(load_config("chat", version, {}, {}), EngineConfig)


def test_arguments_of_vllm_are_for_its_engine() -> None:
    assert parse_config({"model": "m", "engine": "vllm", "vllm": {"enforce_eager": True}}).vllm == {
        "enforce_eager": True
    }
    assert parse_config({"model": "m", "vllm": {}}).vllm == {}
    with pytest.raises(ConfigError, match='vllm: only with "engine": "vllm"'):
        parse_config({"model": "m", "vllm": {"enforce_eager": True}})
    with pytest.raises(ConfigError, match="vllm: Input should be a valid dictionary"):
        parse_config({"model": "m", "engine": "vllm", "vllm": ["enforce_eager"]})


def test_the_engine_variable_replaces_the_engine_of_chat_alone(version: Path) -> None:
    env = {"TRITON_CHAT_ENGINE": "vllm"}
    assert load_config("chat", version, {}, env).engine == "vllm"
    assert load_config("other", version, {}, env).engine == "native"
    assert load_config("chat", version, {}, {"TRITON_CHAT_ENGINE": ""}).engine == "native"
    write(version / "engine.json", {"model": "m", "engine": "vllm"})
    assert load_config("chat", version, {}, {"TRITON_CHAT_ENGINE": "native"}).engine == "native"


def test_the_engine_variable_is_checked(version: Path) -> None:
    with pytest.raises(ConfigError, match=r"^TRITON_CHAT_ENGINE must be native or vllm \(got 'vLLM'\)$"):
        load_config("chat", version, {}, {"TRITON_CHAT_ENGINE": "vLLM"})


def test_the_native_engine_does_not_leave_out_a_block_for_the_other(version: Path) -> None:
    write(version / "engine.json", {"model": "m", "engine": "vllm", "vllm": {"tensor_parallel_size": 2}})
    assert load_config("chat", version, {}, {"TRITON_CHAT_ENGINE": "vllm"}).vllm == {"tensor_parallel_size": 2}
    with pytest.raises(ConfigError, match=r"^TRITON_CHAT_ENGINE: is native, but the engine settings have a block vllm"):
        load_config("chat", version, {}, {"TRITON_CHAT_ENGINE": "native"})
