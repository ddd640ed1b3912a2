"""LoRA adapters of the embedded checkpoint, made by hand, and the checkpoint with one merged into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TINY = Path(__file__).parents[2] / "models" / "tiny-chat"
RANK = 8
ALPHA = 16
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
_STRENGTH = 0.6
"""Of what is added, beside the weights: enough for other answers, and not for noise."""

Tensors = dict[str, Tensor]


def base_weights() -> Tensors:
    return load_file(TINY / "model.safetensors")


def make_adapter(folder: Path, seed: int, *, rank: int = RANK, **written: Any) -> Path:
    """An adapter of its own for each seed; `written` goes into its configuration."""
    generator = torch.Generator().manual_seed(seed)
    factors: Tensors = {}
    for name, weight in base_weights().items():
        module = name.removesuffix(".weight")
        if not module.endswith(MODULES):
            continue
        outputs, inputs = weight.shape
        a = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        b = torch.randn(outputs, rank, generator=generator)
        wanted = _STRENGTH * weight.norm() * rank / ALPHA
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b * (wanted / (b @ a).norm())
    return write_adapter(folder, factors, r=rank, **written)


def write_adapter(folder: Path, factors: Mapping[str, Tensor], **written: Any) -> Path:
    """The files of peft."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-chat",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [module.rpartition(".")[2] for module in MODULES],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps({**config, **written}))
    save_file(dict(factors), folder / "adapter_model.safetensors")
    return folder


def merged(adapter: Path, folder: Path) -> Path:
    """The checkpoint with the adapter in its weights, computed in float64."""
    shutil.copytree(TINY, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors, weights = load_file(adapter / "adapter_model.safetensors"), base_weights()
    for name, a in factors.items():
        if name.endswith("lora_A.weight"):
            b = factors[name.replace("lora_A", "lora_B")]
            weight = name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            added = (config["lora_alpha"] / config["r"]) * (b.double() @ a.double())
            weights[weight] = (weights[weight].double() + added).float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
