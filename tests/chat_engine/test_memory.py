"""What fits, by numbers alone: those of a laptop, and those of GPUs that no test has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError
from chat_engine.native.memory import (
    GpuMemory,
    ModelSize,
    Paging,
    activation_bytes,
    runner_limits,
    scored_tokens,
    step_tokens,
)
from chat_engine.native.runner import RunnerLimits
from tests.chat_engine.builders import examples

GIB = 1 << 30
# Llama 3.1 8B in bfloat16: 32 layers of 8 KV heads of 128, and 15 GiB of weights.
LLAMA = ModelSize(
    context=131_072, vocab_size=128_256, widest=4 * 4096, num_layers=32, kv_bytes=32 * 8 * (128 + 128) * 2
)
SMALL = ModelSize(context=96, vocab_size=128, widest=128, num_layers=2, kv_bytes=2 * 2 * 16 * 4)
H100, L4 = GpuMemory(free=64 * GIB, total=80 * GIB), GpuMemory(free=8 * GIB, total=23 * GIB)
KERNELS, COPIES = Paging(True, 16), Paging(False, 16)


def config(**settings: object) -> EngineConfig:
    return EngineConfig(model="m", **settings)


# Attention.


@pytest.mark.parametrize(
    ("wanted", "works", "expected"),
    [
        (None, {16}, Paging(True, 16)),
        (None, {32}, Paging(False, 16)),
        (32, {32}, Paging(True, 32)),
        (32, {16}, Paging(False, 32)),
    ],
)
def test_kernels_are_used_where_they_work_with_the_blocks(
    wanted: int | None, works: set[int], expected: Paging
) -> None:
    assert Paging.of(wanted, works.__contains__) == expected


# Tokens of a step.


@pytest.mark.parametrize(
    ("settings", "on_gpu", "expected"),
    [
        ({}, False, 512),
        ({}, True, 2048),
        ({"max_step_tokens": 100}, True, 100),
        ({"max_sequences": 4000}, True, 4000),
        ({"max_sequences": 600}, False, 600),
    ],
)
def test_tokens_of_a_step(settings: dict[str, int], on_gpu: bool, expected: int) -> None:
    assert step_tokens(config(**settings), on_gpu=on_gpu) == expected


def test_a_step_has_room_for_every_sequence() -> None:
    with pytest.raises(ConfigError, match="max_step_tokens: 16 is less than max_sequences, 17"):
        step_tokens(config(max_step_tokens=16, max_sequences=17), on_gpu=False)


@pytest.mark.parametrize(("vocab_size", "expected"), [(128, 512), (128_256, 261), (256_000, 131), (1 << 40, 1)])
def test_prompt_tokens_scored_in_a_step_are_limited_by_their_logits(vocab_size: int, expected: int) -> None:
    assert scored_tokens(vocab_size) == expected


# The KV cache of a GPU.


def test_a_large_gpu_holds_what_is_left_of_its_share() -> None:
    """80 GiB of which 90% may be used, 16 taken by weights, and some for the passes: the rest are blocks of 2 MiB."""
    limits = runner_limits(config(), LLAMA, KERNELS, H100)
    room = 64 * GIB - 8 * GIB - activation_bytes(config(), LLAMA)
    assert limits.num_blocks == pytest.approx(room / (2 << 20), abs=1)
    assert (limits.max_model_len, limits.max_step_tokens, limits.block_size) == (131_072, 2048, 16)
    assert limits.num_blocks * 16 > 400_000


def test_copies_of_a_layers_cache_take_their_part() -> None:
    """Where attention copies blocks, one layer's whole cache may stand there twice: a 33rd part of all."""
    with_copies, without = (runner_limits(config(), LLAMA, paging, H100).num_blocks for paging in (COPIES, KERNELS))
    assert with_copies == pytest.approx(without * 32 / 33, abs=2)


def test_a_small_gpu_takes_a_shorter_context_only() -> None:
    with pytest.raises(ConfigError, match=r"the KV cache holds \d+ tokens, less than one context of 131072; lower max"):
        runner_limits(config(), LLAMA, KERNELS, L4)
    assert runner_limits(config(max_model_len=8192), LLAMA, KERNELS, L4).max_model_len == 8192


def test_a_full_gpu_holds_nothing() -> None:
    with pytest.raises(ConfigError, match="the KV cache holds 0 tokens, less than one context of 131072"):
        runner_limits(config(), LLAMA, KERNELS, GpuMemory(free=GIB, total=80 * GIB))


def test_no_more_than_everybodys_whole_context_at_once() -> None:
    few = config(max_sequences=2, max_model_len=1000)
    for gpu in (H100, None):
        assert runner_limits(few, LLAMA, KERNELS, gpu).num_blocks == 2 * 63


def test_a_setting_says_how_large_the_cache_is_whatever_is_free() -> None:
    for gpu in (H100, GpuMemory(0, GIB), None):
        limits = runner_limits(config(kv_cache_tokens=387), SMALL, Paging(False, 4), gpu)
        assert (limits.num_blocks, limits.max_model_len) == (96, 96)


@pytest.mark.parametrize("tokens", [3, 95])
def test_a_setting_too_small_for_one_context_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match="less than one context of 96"):
        runner_limits(config(kv_cache_tokens=tokens), SMALL, Paging(False, 4), None)


@examples(200)
@given(
    free=st.integers(0, 192 * GIB),
    taken=st.integers(0, 80 * GIB),
    fraction=st.floats(0.05, 0.99),
    sequences=st.integers(1, 2048),
    paging=st.sampled_from([KERNELS, COPIES, Paging(True, 256)]),
)
def test_cache_and_passes_stay_within_the_share_and_what_is_free(
    free: int, taken: int, fraction: float, sequences: int, paging: Paging
) -> None:
    settings = config(memory_fraction=fraction, max_sequences=sequences, max_model_len=2)
    gpu = GpuMemory(free, free + taken)
    try:
        limits = runner_limits(settings, LLAMA, paging, gpu)
    except ConfigError:
        return
    per_layer = 0 if paging.use_kernels else LLAMA.kv_bytes // LLAMA.num_layers
    cache = limits.num_blocks * paging.block_size * (LLAMA.kv_bytes + per_layer)
    needed = cache + activation_bytes(settings, LLAMA)
    assert needed <= free
    assert taken + needed <= fraction * gpu.total + 1


# A CPU.


def test_a_cpu_gives_the_cache_4_gib_at_most() -> None:
    limits = runner_limits(config(max_model_len=8192), LLAMA, COPIES, None)
    assert limits.num_blocks == 4 * GIB // (2 << 20)
    assert limits.max_step_tokens == 512


def test_all_limits_of_a_small_model() -> None:
    limits = runner_limits(config(max_sequences=3, max_step_tokens=16), SMALL, Paging(False, 4), None)
    assert limits == RunnerLimits(
        max_model_len=96,
        max_step_tokens=16,
        block_size=4,
        num_blocks=3 * 24,
        vocab_size=128,
        max_scored_tokens=512,
    )
