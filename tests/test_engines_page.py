"""docs/engines.md has the settings that there are, and its examples are right."""

from __future__ import annotations

import json
import re

import pytest

from chat_engine.config import EngineConfig, parse_config
from chat_engine.request import SamplingParams
from chat_engine.vllm import arguments
from chat_engine.vllm.arguments import vllm_arguments
from chat_gateway.settings import GatewaySettings
from tests.engines_page import PAGE, VLLM_NAMES, cells, rows

EXAMPLES = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
# Not settings of the engine: a request's own, or of the wire and of programs.
OF_REQUESTS = {"truncate_prompt_tokens", *SamplingParams.model_fields}
# In the engine settings where the engine has adapters.
ADAPTERS = {"adapters"}


def names(cell: str) -> set[str]:
    """What stands in backquotes and looks like a setting."""
    return {name for name in re.findall(r"`([^`]+)`", cell) if re.fullmatch(r"(vllm\.)?[a-z]+(_[a-z]+)*", name)}


def test_the_common_settings_are_those_that_are_mapped() -> None:
    listed = {own: names(setting).pop() for setting, theirs, _ in rows("setting") for own in names(theirs)}
    assert listed == arguments._COMMON


def test_what_cannot_be_chosen_is_listed() -> None:
    listed = {name for row in rows("argument") for name in names(row[0])}
    assert listed == {*arguments._FIXED, "load_format", "structured_outputs_config"}


@pytest.mark.parametrize("row", rows("argument"), ids=lambda row: row[0])
def test_what_is_fixed_is_so_for_the_reason_that_is_listed(row: list[str]) -> None:
    listed, value, why = row
    for fixed, reason in (arguments._FIXED[name] for name in names(listed) if name in arguments._FIXED):
        assert why == reason
        assert not isinstance(fixed, bool) or value == str(fixed).lower()


def test_the_settings_of_fastchats_flags_are_ours() -> None:
    known = {*EngineConfig.model_fields, *OF_REQUESTS, *ADAPTERS}
    values = {
        "cpu",
        "cuda",
        "mps",
        "xpu",
        "npu",
        "auto",
        "fp8",
        "vllm",
        "vllm_worker",
        "cli",
        "int8_per_channel_weight_only",
    }
    for flag, *columns in rows("flag of the model, of `cli` and of the workers"):
        for column in columns:
            own = {name for name in names(column) if not name.startswith("vllm.")}
            assert own <= known | values, (flag, own - known - values)


def test_no_argument_that_has_a_setting_is_shown_in_the_block() -> None:
    assert VLLM_NAMES
    assert not VLLM_NAMES & {*arguments._COMMON, *arguments._FIXED}


def test_the_settings_of_the_gateway_are_there() -> None:
    shown = set(re.findall(r"TRITON_CHAT_GATEWAY_([A-Z_]+)", PAGE))
    assert shown
    assert shown <= {name.upper() for name in GatewaySettings.model_fields}


def test_no_flag_of_fastchat_is_there_twice() -> None:
    flags = [
        flag
        for head in (
            "flag of the model, of `cli` and of the workers",
            "flag of the controller, the API server and `cli`",
        )
        for row in rows(head)
        for flag in re.findall(r"`(--[\w-]+)`", row[0])
    ]
    assert set(flags) >= {
        "--num-gpus", "--max-gpu-memory", "--load-8bit", "--cpu-offloading", "--device", "--model-path", "--revision",
        "--dtype", "--gpus", "--limit-worker-concurrency", "--conv-template", "--api-keys",
    }  # fmt: skip
    twice = {flag for flag in flags if flags.count(flag) > 1}
    assert twice == {"--device", "--model-path"}  # by value; and an adapter


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(len(example)))
def test_the_examples_are_settings(example: dict[str, object]) -> None:
    config = parse_config(example)
    assert config.engine == "vllm"
    known = {*arguments._COMMON, *arguments._FIXED, "load_format", "structured_outputs_config", *VLLM_NAMES}
    given = vllm_arguments(config, known, on_cpu="kv_cache_memory_bytes" in config.vllm)
    assert {name: given[name] for name in config.vllm} == config.vllm


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


def test_every_table_row_is_whole() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        assert len({len(cells(row)) for row in table.splitlines()}) == 1, table
