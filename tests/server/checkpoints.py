"""Checkpoints for downloads: bytes that only look like one, and a real one of a few kilobytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

WEIGHTS = random.Random(0).randbytes(3 * 1024 * 1024)
SINGLE = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
}
OTHER = {
    "README.md": b"# A model",
    ".gitattributes": b"*.bin lfs",
    "modeling_mine.py": b"import os",
    "pytorch_model.bin": b"pickle",
    "model.fp16.safetensors": b"another precision",
    "consolidated.safetensors": b"the same once more",
    "tf_model.h5": b"tensorflow",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "original/params.json": b"{}",
    "training_args.bin": b"pickle",
}
"""Never needed beside safetensors."""


def sharded(count: int = 2) -> dict[str, bytes]:
    names = [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
    index = {"weight_map": {f"layer.{place}": name for place, name in enumerate(names)}}
    shards = {name: random.Random(name).randbytes(200_000) for name in names}
    described = {name: data for name, data in SINGLE.items() if name != "model.safetensors"}
    return {**described, "model.safetensors.index.json": json.dumps(index).encode(), **shards}


def files_in(folder: Path) -> dict[str, bytes]:
    """All files but those that the command keeps for itself."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".triton-chat-fetch")
    }
