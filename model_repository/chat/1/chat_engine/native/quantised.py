"""Checkpoints whose weights are quantised already, loaded as plain weights by transformers' own quantizers.

Then all that the engine does with weights is the same for them. What it saves is the download; `quantization` makes
them small in memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from transformers import CompressedTensorsConfig, FineGrainedFP8Config
from transformers.utils.hub import cached_file

from chat_engine.errors import UnsupportedModelError
from chat_engine.native.checkpoint import read_file

log = logging.getLogger(__name__)

_PLAIN_AGAIN: Final[dict[str, Callable[[], Any]]] = {
    "compressed-tensors": lambda: CompressedTensorsConfig(dequantize=True),
    "fp8": lambda: FineGrainedFP8Config(dequantize=True),
}
# As safetensors has them; compressed-tensors puts several small numbers in one of 32 bits.
_SMALL_TYPES: Final = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")
_WEIGHT_ENDS: Final = (".weight", ".weight_packed")
_SCALE_ENDS: Final = (".weight_scale", ".weight_scale_inv")


def plain_again(written: dict[str, Any], model: str, revision: str | None) -> dict[str, Any]:
    """What `from_pretrained` needs to make plain weights of quantised ones; nothing for those that are plain.

    Args:
        written: `config.json`.
        model: hub id or folder.
        revision: of the hub.

    Raises UnsupportedModelError for a form that is not known, for several in one model, of which transformers would
    take the first for all, and for weights without the scales they need, which it would take for plain ones.
    """
    how = written.get("quantization_config")
    if not how:
        return {}
    method = how.get("quant_method") if isinstance(how, dict) else None
    if method not in _PLAIN_AGAIN:
        raise UnsupportedModelError(
            f"config.json: the weights are quantised ({method}), which the engine native cannot read; use a checkpoint "
            "in compressed-tensors, fp8, bfloat16, float16 or float32, or the engine vllm"
        )
    kinds = {repr((group.get("weights"), group.get("format"))) for group in (how.get("config_groups") or {}).values()}
    if len(kinds) > 1:
        raise UnsupportedModelError(
            "config.json: the weights are quantised in several forms (config_groups), which the engine native cannot "
            "read; use a checkpoint with one form, or the engine vllm"
        )
    _check_scales(_tensor_types(model, revision))
    log.info("the weights are quantised (%s), and are made plain ones while they load", method)
    return {"quantization_config": _PLAIN_AGAIN[method]()}


@contextmanager
def dequantising(found: dict[str, Any]) -> Iterator[None]:
    """Says what cannot be dequantised. Raises UnsupportedModelError. `found` is empty for weights that are plain."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # it does what is wanted
            yield
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        if not found:
            raise
        said = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"config.json: quantization_config does not fit the weights, or is not supported: {said}; fetch the "
            "checkpoint again, or use the engine vllm"
        ) from error


def check_all_read(found: dict[str, Any]) -> None:
    """Raises UnsupportedModelError where something that belongs to a quantised weight was not read: it would be wrong.

    Args:
        found: the loading info of `from_pretrained`.
    """
    left = sorted(name for name in found["unexpected_keys"] if ".weight_" in name)
    if left:
        raise UnsupportedModelError(
            f"*.safetensors: {left[0]} belongs to a form of quantised weights that the engine native cannot read; use "
            "the engine vllm"
        )


def _check_scales(types: dict[str, str]) -> None:
    small = [name for name, kind in types.items() if kind in _SMALL_TYPES and name.endswith(_WEIGHT_ENDS)]
    alone = [name for name in small if not any(name.rpartition(".")[0] + end in types for end in _SCALE_ENDS)]
    if alone:
        raise UnsupportedModelError(
            f"*.safetensors: {len(alone)} quantised weights have no scale: {alone[0]} has no "
            f"{_SCALE_ENDS[0].removeprefix('.')} beside it; fetch the checkpoint again"
        )


def _tensor_types(model: str, revision: str | None) -> dict[str, str]:
    """Of all tensors in the checkpoint, by their names."""
    types = {}
    for path in _files(model, revision):
        with safe_open(path, "pt") as file:
            types.update({name: file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118 - no mapping
    return types


def _files(model: str, revision: str | None) -> Iterable[Path]:
    index = read_file(model, "model.safetensors.index.json", revision)
    for name in sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]:
        path = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        if path is not None:  # loading says which is missing
            yield Path(path)
