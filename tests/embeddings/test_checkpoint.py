from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, LlamaConfig, T5Config

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.reading.tokenizer_loader import PROBES
from embedder.checkpoint import Checkpoint, load_checkpoint
from embedder.config import EmbedderConfig
from tests.chat_engine.families import FAMILIES
from tests.embeddings import checkpoints
from tests.embeddings.checkpoints import POSITIONS, VOCABULARY, flags, with_recipe


def load(folder: Path, **settings: object) -> Checkpoint:
    return load_checkpoint(EmbedderConfig(model=str(folder), device="cpu", **settings))


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(bert, tmp_path / "checkpoint"))


def test_what_a_plain_encoder_can_do(any_checkpoint: Path) -> None:
    loaded = load(any_checkpoint)
    assert (loaded.pooling, loaded.max_length, loaded.vocab_size, loaded.width) == (
        "mean", POSITIONS, len(VOCABULARY), 32,
    )  # fmt: skip
    assert not loaded.model.training


def test_the_recipe_is_followed_unless_a_setting_says_otherwise(folder: Path) -> None:
    with_recipe(folder, flags("cls_token"), settings={"max_seq_length": 20, "do_lower_case": True})
    loaded = load(folder)
    assert (loaded.pooling, loaded.max_length, loaded.lower_case) == ("cls", 20, True)
    loaded = load(folder, pooling="last", max_length=POSITIONS)
    assert (loaded.pooling, loaded.max_length) == ("last", POSITIONS)


def test_the_tokenizer_limits_the_length_too(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 16}))
    assert load(folder).max_length == 16


def test_texts_are_neither_cut_nor_padded_by_the_tokenizer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = checkpoints.tokenizer(special_tokens=True)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    tokenizer.save_pretrained(folder)
    assert len(load(folder).tokenizer.encode("the cat sat on the mat").ids) == 8
    assert len(load(folder).tokenizer.encode("cat").ids) == 3
    assert "tokenizer.json is used" not in caplog.text, "it splits texts the same way"


def test_more_positions_than_the_model_has_are_refused(bert: Path) -> None:
    with pytest.raises(ConfigError, match=f"max_length: 41 is more than the model's {POSITIONS} positions"):
        load(bert, max_length=41)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_longest_text_is_kept_to_its_original_length(tmp_path: Path, rope_type: str) -> None:
    rope = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 30}
    if rope_type == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    sizes = {**checkpoints._SIZES, "max_position_embeddings": 60, "num_key_value_heads": 2}
    checkpoints.save(tmp_path, LlamaConfig(**sizes, rope_parameters=rope))
    assert load(tmp_path).max_length == 30


def test_an_encoder_with_a_decoder_is_refused(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, T5Config(vocab_size=len(VOCABULARY), d_model=32, d_kv=8, d_ff=48, num_layers=1))
    with pytest.raises(UnsupportedModelError, match="t5: models with an encoder and a decoder"):
        load(tmp_path)


def test_a_cpu_computes_in_float32_unless_told_otherwise(folder: Path) -> None:
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert load(folder).model.dtype == torch.float32
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_missing_weights_are_refused_and_not_made_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"], weights["pooler.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        UnsupportedModelError, match=r"1 weights .* are missing: encoder\.layer\.1\.output\.dense\.weight"
    ):
        load(folder)


def test_a_weight_of_another_shape_is_refused_with_both_shapes(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:-3].clone()
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"word_embeddings.weight has the shape \[18, 32\], .* \[21, 32\]"):
        load(folder)


def test_quantised_weights_are_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UnsupportedModelError, match=r"quantised \(gptq\), which is not supported"):
        load(folder)


def byte_level(folder: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    """A checkpoint with this tokenizer.json and these entries in tokenizer_config.json."""
    config = checkpoints.bert()
    config.vocab_size = 400
    checkpoints.save(folder, config)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_texts_are_split_as_tokenizer_json_has_it_whatever_class_is_named(tmp_path: Path) -> None:
    tokenizer = FAMILIES["llama3"]()
    loaded = load(byte_level(tmp_path, tokenizer, tokenizer_class="GPT2Tokenizer"))
    for text in PROBES:
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        assert loaded.tokenizer.encode(text, add_special_tokens=False).ids == expected


def test_tokenizer_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    moved = {"350": {"content": "<|moved|>", "special": True}}
    folder = byte_level(tmp_path, FAMILIES["llama3"](), tokenizer_class="GPT2Tokenizer", added_tokens_decoder=moved)
    with pytest.raises(UnsupportedModelError, match="use tokenizer files that belong together"):
        load(folder)


def test_a_checkpoint_without_a_pooler_is_no_matter(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(
        {name: weight for name, weight in load_file(path).items() if "pooler" not in name}, path, {"format": "pt"}
    )
    load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"no weights in safetensors; .* fetch hub --id <id> --convert"):
        load(folder)


def test_code_in_the_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModelError, match="no model of the type 'custom'; code that a checkpoint brings"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_cuda_without_a_gpu_is_said(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        load_checkpoint(EmbedderConfig(model=str(bert), device="cuda:0"))
