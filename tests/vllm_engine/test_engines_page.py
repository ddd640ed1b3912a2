"""docs/engines.md names arguments that the installed vLLM has."""

from __future__ import annotations

from dataclasses import fields

from chat_engine.vllm import arguments
from tests.engines_page import PAGE, VLLM_NAMES


def known() -> set[str]:
    from vllm import AsyncEngineArgs

    return {field.name for field in fields(AsyncEngineArgs)}


def test_the_arguments_are_vllms() -> None:
    assert known() >= VLLM_NAMES
    assert set(arguments._COMMON) <= known()


def test_what_is_said_to_be_gone_is_gone() -> None:
    assert "`swap_space` | not in vLLM any more" in PAGE
    assert "swap_space" not in known()


def test_the_quantisations_are_vllms() -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    assert {"fp8", "int8_per_channel_weight_only"} <= set(QUANTIZATION_METHODS)
