"""Loads a checkpoint and finds out whether paged attention can run it, before anybody is served."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.attention import IMPLEMENTATION, LayerProbe
from chat_engine.native.checkpoint import (
    CheckpointConfig,
    check_weights,
    loading_weights,
    read_config,
    read_file,
    torch_device,
    torch_dtype,
)
from chat_engine.native.context import ContextRange, context_range, fix_frequencies
from chat_engine.native.cpu_products import CpuProducts
from chat_engine.native.generation_defaults import GenerationDefaults, generation_defaults
from chat_engine.native.packing import pack
from chat_engine.native.paged_cache import LayerShape
from chat_engine.native.quantised import check_all_read, dequantising, plain_again
from chat_engine.native.weights import Int8Weight, can_pack

log = logging.getLogger(__name__)

# Chunked attention, or a state carried along the sequence, would be silently wrong for packed sequences.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint on its device.

    Attributes:
        model: the transformers model, with paged attention.
        layers: what each attention layer keeps for a token.
        context: how long its sequences may be.
        defaults: what the checkpoint's `generation_config.json` asks for.
    """

    model: PreTrainedModel
    layers: list[LayerShape]
    context: ContextRange
    defaults: GenerationDefaults

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and KV cache."""
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.model.config.get_text_config().vocab_size)

    def quantise(self, products: CpuProducts | None) -> None:
        """Has the weights of its linear layers in 8 bits; multiplied by `products`, where there are any."""
        pack(self.model, lambda: _trial_pass(self.model), products.int8 if products else Int8Weight)

    @property
    def suits_own_products(self) -> bool:
        """Whether oneDNN has no faster products of its type here."""
        return self.dtype == torch.float32 or not can_pack(self.dtype)

    def pack(self, products: CpuProducts | None) -> None:
        """Has its linear layers merged, and packed, where that is faster; for `products`, where these are."""
        if products:
            pack(self.model, lambda: _trial_pass(self.model), products.weight)
        elif self.device.type == "cuda" or can_pack(self.dtype):
            pack(self.model, lambda: _trial_pass(self.model))

    @torch.inference_mode()
    def own_logits(self, ids: list[int], implementation: str) -> Tensor:
        """Logits `[tokens, vocab]` by one of the model's own ways to attend over the whole sequence, float32."""
        try:
            self.model.set_attn_implementation(implementation)
            logits = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits
        finally:
            self.model.set_attn_implementation(IMPLEMENTATION)
        return torch.as_tensor(logits[0]).float()


def load_model(config: EngineConfig) -> LoadedModel:
    """Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint."""
    device = torch_device(config.device)
    found = _causal_config(config)
    if config.async_scheduling and device.type == "cpu":
        raise ConfigError("async_scheduling: is for GPUs; leave it out")
    if config.quantization and device.type != "cpu":
        raise ConfigError(
            f"quantization: {config.quantization} is for CPUs with the engine native; on a GPU, set "
            '"engine": "vllm" and vllm.quantization'
        )
    generation = read_file(config.model, "generation_config.json", config.revision)
    model = _load(config, device, plain_again(found.written, config.model, config.revision))
    layers, widest_window = _probe(model)
    text = model.config.get_text_config()
    context = _context(text, widest_window)
    if (config.max_model_len or 0) > context.usual:
        _go_further(model, config.max_model_len or 0, context)
    return LoadedModel(model, layers, context, generation_defaults(model, found.written, generation))


@dataclass(frozen=True)
class ContextLimits:
    """What a request to a chat model is checked against."""

    max_model_len: int
    vocab_size: int


def context_limits(config: EngineConfig) -> ContextLimits:
    """The limits that the engine will have with these settings, found out without the weights.

    A KV cache that cannot hold one context keeps the engine from loading, so it never lowers `max_model_len`.

    Raises UnsupportedModelError, or OSError for a missing checkpoint.
    """
    checkpoint = _causal_config(config).parsed
    text = checkpoint.get_text_config()
    max_model_len = config.max_model_len or _context(text, _widest_window(checkpoint)).usual
    return ContextLimits(max_model_len, int(text.vocab_size))


def sample_ids(count: int, vocab_size: int) -> list[int]:
    """Token ids to try a model with: the same ones each time."""
    return random.Random(0).choices(range(vocab_size), k=count)


def _causal_config(config: EngineConfig) -> CheckpointConfig:
    found = read_config(config.model, config.revision)
    if type(found.parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{found.parsed.model_type}: transformers has no model of this type that generates text"
        )
    return found


def _load(config: EngineConfig, device: torch.device, dequantised: dict[str, Any]) -> PreTrainedModel:
    try:
        with loading_weights(), dequantising(dequantised):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                config.model,
                revision=config.revision,
                trust_remote_code=False,
                dtype=torch_dtype(config.dtype),
                attn_implementation=IMPLEMENTATION,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **dequantised,
            )
    except KeyError as error:  # a class with a table of its own attention implementations
        raise UnsupportedModelError(f"the model's code has no attention implementation {error}") from error
    model: PreTrainedModel = loaded[0]
    check_weights(loaded[1])
    if dequantised:
        check_all_read(loaded[1])
        model.to(dtype=model.config.dtype)  # type: ignore[call-arg] # some take that of scales
    if config.dtype == "auto" and device.type == "cpu":
        model.to(dtype=cpu_dtype(model.dtype, model.get_memory_footprint(), _memory_available()))  # type: ignore[call-arg]
    model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    return model


def cpu_dtype(dtype: torch.dtype, weight_bytes: int, available_bytes: int) -> torch.dtype:
    """What `dtype: auto` makes of a checkpoint of `dtype` on a CPU.

    Matrix products of 16-bit numbers are many times slower than those of float32 where the processor has no
    instructions for them, so float32 is better, as long as twice the weights leave half of the memory for others.
    """
    natively = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,  # noqa: SLF001
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,  # noqa: SLF001
    }
    if dtype not in natively or natively[dtype]():
        return dtype
    return torch.float32 if 2 * weight_bytes <= available_bytes // 2 else dtype


def _memory_available() -> int:
    """Bytes that this process may still take, of the machine and of its container (cgroup v2)."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and limit.read_text("ascii").strip() != "max":
        available = min(available, int(limit.read_text("ascii")) - int(used.read_text("ascii")))
    return available


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> tuple[list[LayerShape], int | None]:
    """The attention layers and the widest sliding window, found out by one trial forward pass.

    Raises UnsupportedModelError when the model does not attend through transformers' interface, or needs more.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if model._is_stateful or kinds - _LAYER_TYPES:  # noqa: SLF001
        raise UnsupportedModelError(
            f"{model.config.model_type}: layers other than plain or sliding-window attention are not supported"
        )
    try:
        probe = _trial_pass(model)
    except (TypeError, AttributeError, AssertionError) as error:
        raise UnsupportedModelError(f"{model.config.model_type}: cannot run on paged attention: {error}") from error
    count = int(model.config.get_text_config().num_hidden_layers)
    if sorted(probe.layers) != list(range(count)):
        raise UnsupportedModelError(
            f"{model.config.model_type}: {len(probe.layers)} of {count} layers attend through transformers' attention "
            "interface; models with other kinds of layers are not supported"
        )
    return [probe.layers[index] for index in range(count)], probe.widest_window


def _trial_pass(model: PreTrainedModel) -> LayerProbe:
    probe = LayerProbe()
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    model(input_ids=ids, position_ids=positions, use_cache=False, paged=probe)
    return probe


def _widest_window(checkpoint: PretrainedConfig) -> int | None:
    """What `_probe` finds, on tensors that have shapes and no memory; only a model with a window has to be asked."""
    if not getattr(checkpoint.get_text_config(), "sliding_window", None):
        return None
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(
            checkpoint,
            attn_implementation=IMPLEMENTATION,
            dtype=torch.bfloat16,  # in others, layers of experts cannot be computed without data
        )
        return _probe(model)[1]


def _go_further(model: PreTrainedModel, max_model_len: int, context: ContextRange) -> None:
    if max_model_len > context.most:
        raise ConfigError(
            f"max_model_len: {max_model_len} is more than the {context.most} tokens that the model supports"
        )
    log.warning(
        "max_model_len %d is beyond %d, so all sequences, short ones too, get the rotary frequencies of long ones",
        max_model_len, context.usual,
    )  # fmt: skip
    fix_frequencies(model, max_model_len)


def _context(text: PretrainedConfig, widest_window: int | None) -> ContextRange:
    window = getattr(text, "sliding_window", None)
    if window and widest_window is None:
        return context_range(text).capped(int(window))  # the model does not pass its window on
    return context_range(text)
