"""Which files of a source `transformers` needs for a causal LM or an encoder.

Never code, and no other runtime's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from triton_chat_server.errors import CommandError
from triton_chat_server.fetch.files import RemoteFile, safe

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_SAFETENSORS = "adapter_model.safetensors"
ADAPTER_BIN = "adapter_model.bin"

_DESCRIBING = re.compile(
    r"[^/]+\.json"  # configuration and tokenizer
    r"|[^/]+\.(model|txt|jinja|tiktoken)"  # vocabularies, merges, chat template
    r"|additional_chat_templates/[^/]+\.jinja"
    r"|\d+_[A-Za-z]+/config\.json"  # the steps of sentence-transformers, such as 1_Pooling
)
_INDEX = re.compile(r".*\.index(\.\w+)?\.json")


@dataclass(frozen=True)
class Selection:
    """What to download: `files`, among them `bins`, pickled weights in the order of their names, to be converted."""

    files: tuple[RemoteFile, ...]
    bins: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)

    @property
    def bin_size(self) -> int:
        """Bytes that the converted weights will take."""
        return sum(file.size for file in self.files if file.path in self.bins)

    @property
    def converted(self) -> list[str]:
        """Names of the files that the conversion makes, the index last where there is one."""
        count = len(self.bins)
        if self.bins == (ADAPTER_BIN,):
            return [ADAPTER_SAFETENSORS]
        if count < 2:
            return [SAFETENSORS for _ in self.bins]
        shards = [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]
        return [*shards, SAFETENSORS_INDEX]


def select(files: Mapping[str, RemoteFile], read: Callable[[str], bytes], *, convert: bool) -> Selection:
    """Weights as `from_pretrained` looks for them: one file first, then an index and its shards.

    Args:
        files: all that the source has.
        read: gives the content of one of them; only an index is read.
        convert: whether pickled weights will do.

    Raises CommandError where there are no weights of a kind that is allowed, or no config.json.
    """
    if "config.json" not in files:
        hint = "; for a LoRA adapter use --adapter" if ADAPTER_CONFIG in files else ""
        raise CommandError(f"config.json is missing: this is not a transformers checkpoint{hint}")
    describing = [path for path in files if _DESCRIBING.fullmatch(path) and not _INDEX.fullmatch(path) and safe(path)]
    weights = _weights(files, read, SAFETENSORS, SAFETENSORS_INDEX)
    bins = [] if weights else _weights(files, read, BIN, BIN_INDEX)
    if not weights and not bins:
        raise CommandError(f"no weights found: neither {SAFETENSORS} nor an index of shards")
    if bins and not convert:
        raise CommandError(
            f"only pickled weights ({bins[0]}) were found, which the engine does not load; use --convert to "
            "download and convert them"
        )
    names = dict.fromkeys([*sorted(describing), *weights, *bins])
    return Selection(tuple(files[name] for name in names), tuple(name for name in bins if name != BIN_INDEX))


def select_adapter(files: Mapping[str, RemoteFile], *, convert: bool) -> Selection:
    """What a LoRA adapter consists of, in the form of the library peft; the tokenizer is that of its model.

    Raises CommandError where there are no weights of a kind that is allowed, or no configuration.
    """
    if ADAPTER_CONFIG not in files:
        raise CommandError(f"{ADAPTER_CONFIG} is missing: this is not a LoRA adapter in the form of the library peft")
    weights = next((name for name in (ADAPTER_SAFETENSORS, ADAPTER_BIN) if name in files), None)
    if weights is None:
        raise CommandError(f"no weights found: {ADAPTER_SAFETENSORS} is missing")
    if weights == ADAPTER_BIN and not convert:
        raise CommandError(
            f"only pickled weights ({ADAPTER_BIN}) were found, which the engine does not load; use --convert to "
            "download and convert them"
        )
    bins = (ADAPTER_BIN,) if weights == ADAPTER_BIN else ()
    return Selection((files[ADAPTER_CONFIG], files[weights]), bins)


def _weights(files: Mapping[str, RemoteFile], read: Callable[[str], bytes], single: str, index: str) -> list[str]:
    if single in files:
        return [single]
    if index not in files:
        return []
    try:
        shards = sorted({str(name) for name in json.loads(read(index))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{index} is not a valid index of weights") from error
    suffix = single.rpartition(".")[2]
    for shard in shards:
        if shard not in files or not safe(shard) or not shard.endswith(f".{suffix}"):
            raise CommandError(f"{index} names the file {shard!r}, which does not exist")
    return [index, *shards]
