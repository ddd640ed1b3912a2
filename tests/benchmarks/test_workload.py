"""The checkpoint that benchmarks make: of the shape that is asked for, and with a word for each token."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from benchmarks.workload import Shape, make_checkpoint

TINY = Shape(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip


def test_a_checkpoint_of_another_shape(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", TINY)
    config = AutoConfig.from_pretrained(folder)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (32, 16, 1)
    assert AutoTokenizer.from_pretrained(folder)("w5 w31").input_ids == [5, 31]
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_checkpoint(folder, TINY) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
