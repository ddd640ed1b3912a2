"""Pickled weights to safetensors, one shard after the other, in bounded memory."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.parts import FOLDER
from triton_chat_server.fetch.selection import SAFETENSORS_INDEX

log = logging.getLogger("fetch")

_NOT_WEIGHTS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    *(LookupError, TypeError, AttributeError, AssertionError),  # the unpickler's, for a file that is no pickle at all
)


def to_safetensors(folder: Path, bins: Sequence[str], made: Sequence[str]) -> None:
    """Writes a safetensors file for each of `bins`, and their index if that is the last of the names in `made`.

    Raises CommandError for a file that is no plain dictionary of tensors. A file that a kill leaves half written has
    another name.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for source, target in zip(bins, made, strict=False):
        log.info("converting %s", source)
        for name, size in _convert(folder / source, folder / target).items():
            weight_map[name] = target
            total += size
    if made[-1] == SAFETENSORS_INDEX:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2), "utf-8")


def _convert(source: Path, target: Path) -> dict[str, int]:
    """Returns the bytes of each tensor. They go from the mapped file to the new one without a copy in memory."""
    tensors = _unshared(_load(source))
    fresh = target.parent / FOLDER / target.name
    save_file(tensors, fresh, metadata={"format": "pt"})
    fresh.replace(target)
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def _load(source: Path) -> dict[str, Tensor]:
    try:
        # The restricted unpickler builds tensors and plain containers, and runs no code of the file.
        state = torch.load(source, map_location="cpu", weights_only=True, mmap=_is_zip(source))
    except _NOT_WEIGHTS as error:
        raise CommandError(f"{source.name} cannot be read as plain weights: it is damaged or contains code") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CommandError(f"{source.name} is not a plain dictionary of tensors")
    return {str(name): tensor.detach() for name, tensor in state.items()}


def _is_zip(source: Path) -> bool:
    """Files of torch before 1.6 are none and cannot be mapped; they are read into memory."""
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each with memory of its own, as safetensors wants it.

    A copy is always right: `from_pretrained` ties again what the configuration ties, and only that.
    """
    seen: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        alone[name] = tensor if whole else tensor.contiguous().clone()
    return alone
