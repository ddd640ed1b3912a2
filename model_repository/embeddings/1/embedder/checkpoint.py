"""Loads a checkpoint and finds out what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.checkpoint import (
    check_weights,
    loading_weights,
    read_config,
    refuse_quantised,
    torch_device,
    torch_dtype,
)
from chat_engine.reading.tokenizer_loader import load_tokenizer
from embedder.config import EmbedderConfig, PoolingName
from embedder.recipe import Recipe, read_recipe

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*"]
# Rope types whose frequencies change for everybody in the batch when one text grows long.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_NO_LIMIT = 10**9  # tokenizers without a limit say a number far beyond this
_FALLBACK_LENGTH = 512


@dataclass(frozen=True)
class Checkpoint:
    """An encoder on its device, and how its texts become vectors.

    Attributes:
        model: gives hidden states `[texts, tokens, width]`.
        tokenizer: neither cuts nor pads; never changed again.
        pooling: what makes one vector of the states of a text.
        max_length: the longest text in tokens, special ones included.
        vocab_size: number of token ids.
        width: components of a vector.
        pad_id: what fills up shorter texts.
        lower_case: whether texts are put into lower case first.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    pooling: PoolingName
    max_length: int
    vocab_size: int
    width: int
    pad_id: int
    lower_case: bool


def load_checkpoint(config: EmbedderConfig) -> Checkpoint:
    """Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint."""
    folder = _folder(config)
    recipe = read_recipe(folder)
    model = _load_model(folder, config)
    tokenizer, backend = load_tokenizer(str(folder))
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    pad_id = model.config.get_text_config().pad_token_id
    return Checkpoint(
        model=model,
        tokenizer=backend,
        pooling=recipe.pooling or "mean" if config.pooling == "auto" else config.pooling,
        max_length=_max_length(config, recipe, model, tokenizer),
        vocab_size=table.num_embeddings,
        width=int(model.config.get_text_config().hidden_size),
        pad_id=0 if pad_id is None else int(pad_id),
        lower_case=recipe.lower_case,
    )


def _folder(config: EmbedderConfig) -> Path:
    """Where the checkpoint lies, downloaded if it is on the hub: weights and all files that describe it."""
    if Path(config.model).is_dir():
        return Path(config.model)
    return Path(
        huggingface_hub.snapshot_download(
            config.model, revision=config.revision, allow_patterns=_FILES, ignore_patterns=_OTHER_RUNTIMES
        )
    )


def _load_model(folder: Path, config: EmbedderConfig) -> PreTrainedModel:
    device = torch_device(config.device)
    checkpoint = read_config(str(folder)).parsed
    refuse_quantised(checkpoint)
    if checkpoint.is_encoder_decoder:
        raise UnsupportedModelError(f"{checkpoint.model_type}: models with an encoder and a decoder are not supported")
    with loading_weights():
        loaded: Any = AutoModel.from_pretrained(
            folder,
            dtype=_dtype(config.dtype, device),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]
    # A pooler is a layer for another purpose, and often not in the checkpoint.
    check_weights(loaded[1], unused="pooler.")
    model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
    model.to(device)  # type: ignore[arg-type]
    return model


def _dtype(name: str, device: torch.device) -> Any:
    """Few CPUs multiply 16-bit numbers fast, and those that do not are many times slower with them."""
    return torch.float32 if name == "auto" and device.type == "cpu" else torch_dtype(name)


def _max_length(
    config: EmbedderConfig, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    positions = _positions(model)
    if config.max_length is not None:
        if positions is not None and config.max_length > positions:
            raise ConfigError(f"max_length: {config.max_length} is more than the model's {positions} positions")
        return config.max_length
    limits = (positions, recipe.max_length, tokenizer.model_max_length)
    return min((int(limit) for limit in limits if limit and limit < _NO_LIMIT), default=_FALLBACK_LENGTH)


def _positions(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for; None where they are relative."""
    text: Any = model.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not limit:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return int(limit) - _reserved_positions(model)


def _reserved_positions(model: PreTrainedModel) -> int:
    """RoBERTa and its like count positions from behind the padding's own."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0
