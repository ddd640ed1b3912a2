"""Tiny checkpoints as sentence-transformers writes them, with random weights large enough to tell texts apart."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XLMRobertaConfig,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [
    "a", "the", "cat", "dog", "sat", "ran", "on", "mat", "slowly", ".", "hello", "world", "你好", "triton", "serves",
    "chat", "models",
]  # fmt: skip
VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}
POSITIONS = 40

_SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def bert() -> BertConfig:
    return BertConfig(**_SIZES, max_position_embeddings=POSITIONS)


def roberta() -> XLMRobertaConfig:
    """It counts positions from behind the padding's: one of them is not for tokens."""
    return XLMRobertaConfig(**_SIZES, max_position_embeddings=POSITIONS + 1, type_vocab_size=1)


def qwen3() -> Qwen3Config:
    return Qwen3Config(**_SIZES, max_position_embeddings=POSITIONS, num_key_value_heads=2, head_dim=8)


def save(folder: Path, config: PreTrainedConfig, *, special_tokens: bool = True) -> Path:
    """A checkpoint without files of sentence-transformers."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer(special_tokens).save_pretrained(folder)
    return folder


def tokenizer(special_tokens: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special_tokens:
        ends = [(name, VOCABULARY[name]) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def with_recipe(
    folder: Path,
    pooling: dict[str, object] | None,
    steps: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    settings: dict[str, object] | None = None,
) -> Path:
    """Adds what sentence-transformers writes beside a checkpoint."""
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{step}" if index else "", "type": f"some.package.{step}"}
        for index, step in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def flags(*on: str) -> dict[str, object]:
    """A pooling config in the form with a flag for each mode."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 32, **{f"pooling_mode_{mode}": mode in on for mode in modes}}
