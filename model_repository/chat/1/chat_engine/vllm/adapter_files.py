"""The files of LoRA adapters, in the form of the library peft: where they are, and whether they fit the checkpoint.

Nothing here needs vLLM. What vLLM would take wrongly (weights that are too small are filled up with zeros) or would say
in a traceback is found here, before the checkpoint is loaded.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils.hub import cached_file

from chat_engine.errors import ConfigError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLED = ("adapter_model.bin", "adapter_model.pt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_NUMBERED = re.compile(r"(?:.*?\.)?(?P<tail>(?P<layer>\w+\.\d+)\..+)")
"""Names of modules in a checkpoint may begin differently than in a model: `layers.3.mlp.up_proj` is what they share."""
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")
_HEAD = "lm_head"
_PACKED = {"U8", "I32"}
"""Types of quantised weights whose shape is not the module's."""


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files are there.

    Attributes:
        name: in the settings.
        folder: where its files are.
        rank: the largest of its modules.
        made_for: the base model, as whoever made it called that.
        sizes: outputs and inputs of each module that it changes, by the module's name.
    """

    name: str
    folder: Path
    rank: int
    made_for: str
    sizes: Mapping[str, tuple[int, int]]

    @property
    def targets(self) -> set[str]:
        """What it changes, by the names of modules without their places; experts go together."""
        parts = [module.split(".") for module in self.sizes]
        return {names[-1] for names in parts} | {"experts" for names in parts if "experts" in names}


@dataclass
class BaseWeights:
    """The shapes of a checkpoint's weights, by the part of their modules' names that counts."""

    shapes: dict[str, set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    layers: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: str, revision: str | None = None) -> BaseWeights | None:
        """Of a hub id or a folder; None where the weights are not on this machine yet."""
        config = cached_file(model, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        files = sorted(Path(config).parent.glob("*.safetensors")) if config else []
        if not files or _missing(files[0].parent):
            return None
        weights = cls()
        for file in files:
            for name, shape, kind in _header(file):
                tail, layer = _tail(name.rpartition(".")[0])
                weights.layers.add(layer)
                weights.shapes[tail] |= {shape} if name.endswith(".weight") and kind not in _PACKED else set()
        return weights


def find_adapter(name: str, place: str) -> Adapter:
    """Looks for the files.

    Args:
        name: in the settings.
        place: a folder or a hub id.

    Raises ConfigError.
    """
    folder = _folder(name, place)
    written = _written(name, folder)
    kind = written.get("peft_type")
    if kind != "LORA":
        raise _wrong(name, f"{CONFIG} says that it is of the type {kind!r}; only LORA is served")
    try:
        shapes = {weight: shape for weight, shape, _ in _header(folder / WEIGHTS)}
    except (SafetensorError, OSError) as error:
        raise _wrong(name, f"{WEIGHTS} is damaged or incomplete; fetch the adapter again") from error
    adapter = Adapter(name, folder, *_ranks(name, written, shapes), sizes=_sizes(name, shapes))
    if _HEAD in adapter.targets:
        raise _wrong(name, f"it changes {_HEAD}, for which vLLM reports wrong prompt_logprobs; train one without it")
    return adapter


def check_base(adapter: Adapter, base: BaseWeights) -> None:
    """Raises ConfigError for an adapter of another model."""
    known = {module: base.shapes[tail] for module in adapter.sizes if (tail := _tail(module)[0]) in base.shapes}
    if not known:
        raise _other_base(adapter, "none of its modules is in this model")
    for module, (outputs, inputs) in adapter.sizes.items():
        tail, layer = _tail(module)
        shapes = known.get(module, set())
        flat = {shape for shape in shapes if len(shape) == 2}
        if shapes and all(len(shape) < 2 for shape in shapes):
            raise _wrong(adapter.name, f"it changes {tail}, which is no matrix; vLLM has adapters of matrices alone")
        if flat and not flat & {(outputs, inputs), (inputs, outputs)}:
            here = " or ".join(f"{shape[0]}x{shape[1]}" for shape in sorted(flat))
            raise _other_base(adapter, f"{tail} is {outputs}x{inputs} there, {here} here")
        if layer and layer not in base.layers:
            raise _other_base(adapter, f"this model has no {layer}")


def write_zeros(folder: Path, like: Adapter) -> None:
    """Writes an adapter that changes nothing, of a module that another one changes."""
    module, (outputs, inputs) = next(iter(like.sizes.items()))
    written = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module.rpartition(".")[2]]}
    (folder / CONFIG).write_text(json.dumps(written), encoding="utf-8")
    factors = {"A": np.zeros((1, inputs), np.float32), "B": np.zeros((outputs, 1), np.float32)}
    save_file({f"{module}.lora_{which}.weight": factor for which, factor in factors.items()}, folder / WEIGHTS)


def _folder(name: str, place: str) -> Path:
    """With both files in it."""
    folder = Path(place).expanduser()
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(place):
            raise _wrong(name, f"there is no folder {place!r}")
        found = [_from_hub(name, place, file) for file in (CONFIG, WEIGHTS)]
        return next((Path(file).parent for file in found if file), folder)
    return folder


def _from_hub(name: str, repository: str, file: str) -> str | None:
    try:
        return cached_file(repository, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise _wrong(
            name,
            f"{repository!r} is no folder, and no repository of the hub that can be reached from here; fetch it by: "
            f"triton-chat-server fetch hub --id {repository} --adapter --target <folder>",
        ) from error


def _written(name: str, folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise _wrong(name, f"{CONFIG} is missing: this is no adapter in the form of the library peft")
    if not (folder / WEIGHTS).is_file():
        pickled = next((file for file in _PICKLED if (folder / file).is_file()), None)
        advice = f"; {pickled} may hold code, convert it by: triton-chat-server fetch hub --id <id> --adapter --convert"
        raise _wrong(name, f"{WEIGHTS} is missing{advice if pickled else '; fetch the adapter again'}")
    try:
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _wrong(name, f"{CONFIG} is not JSON; fetch the adapter again") from error
    if not isinstance(written, dict):
        raise _wrong(name, f"{CONFIG} must be a JSON object; fetch the adapter again")
    return written


def _ranks(name: str, written: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    """What it says and what it has, whichever is larger; and whom it is for."""
    said, pattern = written.get("r"), written.get("rank_pattern") or {}
    if not isinstance(said, int) or said < 1 or not isinstance(pattern, dict):
        raise _wrong(name, f"{CONFIG} has no valid rank (r: {said!r}); fetch the adapter again")
    real = [shape[0] for weight, shape in shapes.items() if weight.endswith(".lora_A.weight")]
    ranks = [said, *real, *(rank for rank in pattern.values() if isinstance(rank, int))]
    return max(ranks), str(written.get("base_model_name_or_path") or "not said")


def _sizes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    factors: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for weight, shape in shapes.items():
        if (found := _FACTOR.fullmatch(weight)) and len(shape) == 2:
            factors[found["module"]][found["which"]] = shape
    lone = next((module for module, pair in factors.items() if len(pair) == 1), None)
    if lone or not factors:
        missing = f"only one of lora_A and lora_B for {_tail(lone)[0]}" if lone else "no weights of a LoRA adapter"
        raise _wrong(name, f"{WEIGHTS} has {missing}; fetch the adapter again")
    odd = next((module for module, pair in factors.items() if pair["A"][0] != pair["B"][1]), None)
    if odd:
        raise _wrong(name, f"{WEIGHTS} has a lora_A and a lora_B of {_tail(odd)[0]} that do not fit each other")
    return {module: (pair["B"][0], pair["A"][1]) for module, pair in factors.items()}


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type of each weight. Raises SafetensorError."""
    with safe_open(file, framework="numpy") as weights:
        for name in weights.keys():  # noqa: SIM118 - it is no dictionary
            part = weights.get_slice(name)
            yield name, tuple(part.get_shape()), part.get_dtype()


def _missing(folder: Path) -> bool:
    """Whether files are still to come that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return False
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return not all((folder / name).is_file() for name in named)


def _tail(module: str) -> tuple[str, str]:
    """What of a module's name counts, and its layer, if it is in one."""
    found = _NUMBERED.fullmatch(module)
    return (found["tail"], found["layer"]) if found else (module.rpartition(".")[2], "")


def _other_base(adapter: Adapter, why: str) -> ConfigError:
    return _wrong(
        adapter.name,
        f"it is for another base model ({adapter.made_for}): {why}; name an adapter of the model that is served",
    )


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"adapters.{name}: {what}")
