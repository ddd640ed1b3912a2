"""Loads a model into vLLM, and tries it out before anybody is served."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import vllm
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from transformers import GenerationConfig, PretrainedConfig
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import StructuredOutputsParams
from vllm.triton_utils import HAS_TRITON
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.checkpoint import read_file
from chat_engine.native.generation_defaults import GenerationDefaults, read_defaults
from chat_engine.vllm.adapters import Adapters
from chat_engine.vllm.arguments import check_devices, check_nodes, may_share_process, vllm_arguments
from chat_engine.vllm.context import vllm_limits
from chat_engine.vllm.environment import compile_nothing, share_process
from chat_engine.vllm.log import at
from chat_engine.vllm.loop import LoopThread
from chat_engine.vllm.processes import Processes
from chat_engine.vllm.steps import Steps

log = logging.getLogger(__name__)

_FIRST_USES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0},
    {"temperature": 0.0, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    {"temperature": 0.0, "logit_bias": {0: 1.0}},
    {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(json_object=True)},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "seed": 0},
)
"""What vLLM's sampler does apart."""

_ENDS_SECONDS = 5.0


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in vLLM.

    Attributes:
        llm: vLLM's asynchronous engine.
        loop: where its coroutines run.
        processes: its cores and their workers.
        steps: hears of each of its steps.
        max_model_len: tokens of prompt and answer together.
        vocab_size: number of token ids.
        defaults: what the checkpoint's `generation_config.json` asks for.
        longest_pass: seconds of the longest step that was tried.
        adapters: what vLLM calls each adapter, by name; see `Adapters.requests`.
        greedy_alone: whether it can do no more than greedy decoding.
    """

    llm: AsyncLLM
    loop: LoopThread
    processes: Processes
    steps: Steps
    max_model_len: int
    vocab_size: int
    defaults: GenerationDefaults
    longest_pass: float
    adapters: Mapping[str | None, LoRARequest]
    greedy_alone: bool

    def close(self) -> None:
        """Ends vLLM's processes and the thread, if they have not ended yet."""
        if self.loop.is_closed():
            return
        self.loop.end_tasks()  # else vLLM's own takes the end of its processes for a failure
        self.llm.shutdown(timeout=_ENDS_SECONDS)
        self.processes.close()
        self.loop.close()


def load_model(config: EngineConfig) -> LoadedModel:
    """Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint."""
    adapters = Adapters(config, on_cpu=current_platform.is_cpu())
    vllm_config = vllm_config_of(config, adapters.arguments)
    model = vllm_config.model_config
    defaults = _defaults(config, model)
    adapters.check(vllm_config.lora_config)
    log.info(at(f"vLLM {vllm.__version__} starts its processes"))
    loop, processes, steps = LoopThread(), Processes(), Steps()
    try:
        llm = loop.call(_start(vllm_config, steps))
    except Exception as error:
        processes.close()
        loop.close()
        if not isinstance(error, ValueError | RuntimeError):
            raise
        raise ConfigError(f"vLLM could not load the model; its own lines in the log say why: {_line(error)}") from error
    log.info(at("trying the model out"))
    # Without Triton, nothing spreads the parameters over the proposed tokens: vLLM would draw by what lies in memory.
    greedy_alone = vllm_config.speculative_config is not None and not HAS_TRITON
    try:
        loop.call(adapters.load(llm))
        longest = loop.call(_try_out(llm, vllm_config.scheduler_config.max_num_batched_tokens, greedy_alone))
    except Exception as error:
        processes.close()
        llm.shutdown(timeout=_ENDS_SECONDS)
        loop.close()
        if not isinstance(error, EngineDeadError):
            raise
        raise ConfigError(
            "vLLM has loaded the model but cannot compute with it; its own lines in the log say why, often that the "
            "setting dtype, or an argument in the block vllm, does not go with the checkpoint"
        ) from error
    processes.note()
    log.info(at(f"loaded: {model.dtype}, context {model.max_model_len}"))
    return LoadedModel(
        llm, loop, processes, steps, model.max_model_len, model.get_vocab_size(), defaults, longest, adapters.requests,
        greedy_alone,
    )  # fmt: skip


def vllm_config_of(
    config: EngineConfig, of_adapters: Mapping[str, object], *, headless: bool = False, **more: object
) -> Any:
    """The settings as vLLM's own, with `more` of its arguments; `headless`: for workers alone. Raises ConfigError."""
    known = {field.name for field in fields(AsyncEngineArgs)}
    arguments = {**of_adapters, **vllm_arguments(config, known, on_cpu=current_platform.is_cpu())}
    if "hf_overrides" not in arguments:  # which may change it
        arguments["max_model_len"] = vllm_limits(config).max_model_len
    check_devices(arguments, current_platform.device_count(), on_cpu=current_platform.is_cpu())
    if current_platform.is_cpu():
        _place_on_cores(arguments, {**arguments, **more})
    try:
        made = AsyncEngineArgs(**arguments, **more).create_engine_config(UsageContext.ENGINE_CONTEXT, headless)
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"vLLM does not take these settings: {_line(error)}") from error
    if made.model_config.enforce_eager:
        compile_nothing()
    return made


def _place_on_cores(arguments: dict[str, Any], given: Mapping[str, Any]) -> None:
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    check_nodes(given, nodes, os.environ)
    cores = len(os.sched_getaffinity(0))
    if may_share_process(given, os.environ.keys(), cores):
        share_process(cores)
        arguments["distributed_executor_backend"] = "uni"


def _line(error: Exception) -> str:
    """What it says, in one line; pydantic's has a heading and links around it."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split()) or repr(error)
    return "; ".join(_said(entry) for entry in error.errors(include_url=False))


def _said(entry: ErrorDetails) -> str:
    name, given = ".".join(map(str, entry["loc"])), entry["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float) else ""
    return f"{name}: {entry['msg']}{shown}" if name else f"{entry['msg']}{shown}"


def _defaults(config: EngineConfig, model: Any) -> GenerationDefaults:
    """Raises UnsupportedModelError where the checkpoint rules out tokens in a way that vLLM does not know."""
    generation = read_file(config.model, "generation_config.json", config.revision)
    written, _ = PretrainedConfig.get_config_dict(config.model, revision=config.revision)
    parsed = (
        GenerationConfig.from_dict(generation) if generation else GenerationConfig.from_model_config(model.hf_config)
    )
    defaults = read_defaults(parsed, model.get_vocab_size(), written, generation)
    rules = {
        "no_repeat_ngram_size": defaults.rules.no_repeat_ngram_size,
        "suppress_tokens": sorted(defaults.rules.suppressed),
        "begin_suppress_tokens": sorted(defaults.rules.suppressed_first),
    }
    for name, value in rules.items():
        if value:
            raise UnsupportedModelError(
                f"generation_config.json: {name} {value} is not possible with the engine vllm; "
                "remove it there, or use the engine native"
            )
    return defaults


async def _start(vllm_config: Any, steps: Steps) -> AsyncLLM:
    return AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True, stat_loggers=[steps.logger])


async def _try_out(llm: AsyncLLM, step_tokens: int, greedy_alone: bool) -> float:
    """Seconds of a step as large as they get, and of one of a token. Raises what it raises.

    Before, everything that a request may ask for is asked once: some of it is compiled at its first use, for seconds.
    """
    uses = [use for use in _FIRST_USES if not (greedy_alone and use["temperature"])]
    for number, asked in enumerate(uses):
        params = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False, **asked)
        for rows in (1, 2):  # torch compiles one row and several apart
            with suppress(VLLMValidationError):  # with these settings it does not do that, for nobody
                tried = (_pass(llm, [row, row], params, f"first-{number}-{rows}-{row}") for row in range(rows))
                await asyncio.gather(*tried)
    length = max(1, min(step_tokens, llm.model_config.max_model_len - 2))
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)
    times = [await _pass(llm, [token_id] * length, params, f"try-out-{token_id}") for token_id in (0, 1)]
    return times[1]  # the first time something may be set up that is none of a step's work


async def _pass(llm: AsyncLLM, prompt_ids: list[int], params: SamplingParams, name: str) -> float:
    """Seconds of the longest step of a request."""
    longest, begin = 0.0, time.monotonic()
    async for _ in llm.generate(tokens_input(prompt_ids), params, name):
        longest, begin = max(longest, time.monotonic() - begin), time.monotonic()
    return longest
