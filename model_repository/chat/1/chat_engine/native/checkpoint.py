"""What loading any checkpoint needs, with or without an engine: its config, device and dtype, and whole weights.

What is wrong with a checkpoint is said in the words of its files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file

from chat_engine.errors import ConfigError, UnsupportedModelError

log = logging.getLogger(__name__)

_NAMED = 3  # of many weights


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint's `config.json`: as transformers understands it, and what is written in it, without defaults."""

    parsed: PretrainedConfig
    written: dict[str, Any]


def read_config(model: str, revision: str | None = None) -> CheckpointConfig:
    """Reads `config.json`, of a hub id or a folder.

    Raises UnsupportedModelError where it makes no sense to transformers, or OSError for a missing checkpoint.
    """
    written, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    kind = written.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UnsupportedModelError(
            "config.json: no model_type is given"
            if kind is None
            else f"config.json: transformers {transformers.__version__} has no model of the type {kind!r}; "
            "code that a checkpoint brings is not run"
        )
    try:
        parsed = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (KeyError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        said = str(error.args[0] if error.args else error)
        raise UnsupportedModelError(f"config.json: {' '.join(said.split())}") from error
    return CheckpointConfig(parsed, written)


def read_file(model: str, name: str, revision: str | None = None) -> dict[str, Any]:
    """What is written in a JSON file of a checkpoint; nothing where it has no such file.

    Raises UnsupportedModelError where that is no JSON object: transformers would go on without it.
    """
    path = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    try:
        written = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{name}: not JSON: {error}; fetch the checkpoint again") from error
    if not isinstance(written, dict):
        raise UnsupportedModelError(f"{name}: must be a JSON object; fetch the checkpoint again")
    return written


def torch_device(name: str) -> torch.device:
    """Of the setting `device`. Raises ConfigError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda is set, but torch sees no GPU here")
    return device


def torch_dtype(name: str) -> Any:
    """Of the setting `dtype`, for `from_pretrained`, which knows `auto` itself."""
    return name if name == "auto" else getattr(torch, name)


@contextmanager
def loading_weights() -> Iterator[None]:
    """Says of weights that cannot be loaded what to do about it. Raises UnsupportedModelError."""
    try:
        yield
    except SafetensorError as error:
        raise UnsupportedModelError(
            f"the weights (*.safetensors) are damaged or incomplete: {error}; fetch the checkpoint again"
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and str(error).endswith(".safetensors"):
            missing = str(error).rpartition("/")[2]
            raise UnsupportedModelError(
                f"model.safetensors.index.json names {missing}, which is missing; fetch the checkpoint again"
            ) from error
        if "model.safetensors" not in str(error):
            raise
        raise UnsupportedModelError(
            "the checkpoint has no weights in safetensors; those of a hub repository that has .bin files only are "
            "converted by: triton-chat-server fetch hub --id <id> --convert --target <folder>"
        ) from error


def check_weights(found: dict[str, Any], unused: str = "") -> None:
    """Raises UnsupportedModelError unless every weight of the model came from the checkpoint.

    transformers would fill the others with random numbers, and the model would answer nonsense.

    Args:
        found: the loading info of `from_pretrained`, which is to ignore weights of other shapes: they are refused here.
        unused: what the names of those begin with that the model has, but does not use here.
    """

    def used(name: str) -> bool:
        return not unused or not name.startswith(unused)

    unexpected = sorted(found["unexpected_keys"])
    if unexpected:
        log.warning("weights in *.safetensors that the model has no place for: %s", _some(unexpected))
    missing = sorted(filter(used, found["missing_keys"]))
    if missing:
        raise UnsupportedModelError(
            f"*.safetensors: {len(missing)} weights that config.json requires are missing: {_some(missing)}"
            + (f"; found {_some(unexpected)} instead: rename them" if unexpected else "")
            + "; or use the config.json that belongs to these weights"
        )
    mismatched = sorted((name, tuple(has), tuple(wants)) for name, has, wants in found["mismatched_keys"] if used(name))
    if mismatched:
        name, has, wants = mismatched[0]
        raise UnsupportedModelError(
            f"*.safetensors: {name} has the shape {list(has)}, but config.json requires {list(wants)}"
            + (f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else "")
            + "; use the config.json that belongs to these weights"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def refuse_quantised(config: PretrainedConfig) -> None:
    """Raises UnsupportedModelError for weights that are."""
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise UnsupportedModelError(
            f"config.json: the weights are quantised ({method}), which is not supported here; use a checkpoint in "
            "bfloat16, float16 or float32, or, for a chat model, the engine vllm"
        )
