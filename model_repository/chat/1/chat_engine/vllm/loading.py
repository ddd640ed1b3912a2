"""Loads a model into vLLM, and tries it out before anybody is served."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

import vllm
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from transformers import GenerationConfig, PretrainedConfig
from vllm import AsyncEngineArgs, SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from chat_engine.answering.grammar_trial import python
from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError, UnsupportedModelError
from chat_engine.native.checkpoint import read_file
from chat_engine.native.generation_defaults import GenerationDefaults, read_defaults
from chat_engine.vllm.arguments import vllm_arguments
from chat_engine.vllm.loop import LoopThread
from chat_engine.vllm.steps import Steps

log = logging.getLogger(__name__)

_ENDS_SECONDS = 5.0


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in vLLM.

    Attributes:
        llm: vLLM's asynchronous engine.
        loop: where its coroutines run.
        steps: hears of each of its steps.
        max_model_len: tokens of prompt and answer together.
        vocab_size: number of token ids.
        defaults: what the checkpoint's `generation_config.json` asks for.
        longest_pass: seconds of the longest step that was tried.
    """

    llm: AsyncLLM
    loop: LoopThread
    steps: Steps
    max_model_len: int
    vocab_size: int
    defaults: GenerationDefaults
    longest_pass: float

    def close(self) -> None:
        """Ends vLLM's processes and the thread."""
        self.loop.end_tasks()  # else vLLM's own takes the end of its processes for a failure
        self.llm.shutdown(timeout=_ENDS_SECONDS)
        self.loop.close()


def load_model(config: EngineConfig) -> LoadedModel:
    """Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint."""
    _prepare_process()
    vllm_config = _vllm_config(config)
    model = vllm_config.model_config
    defaults = _defaults(config, model)
    loop, steps = LoopThread(), Steps()
    try:
        llm = loop.call(_start(vllm_config, steps))
    except (ValueError, RuntimeError) as error:
        loop.close()
        raise ConfigError(f"vLLM could not load the model; its own lines in the log say why: {_line(error)}") from error
    try:
        longest = loop.call(_try_out(llm, vllm_config.scheduler_config.max_num_batched_tokens))
    except Exception:
        llm.shutdown(timeout=_ENDS_SECONDS)
        loop.close()
        raise
    log.info("loaded by vLLM %s: %s, context %d", vllm.__version__, model.dtype, model.max_model_len)
    return LoadedModel(llm, loop, steps, model.max_model_len, model.get_vocab_size(), defaults, longest)


def _prepare_process() -> None:
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # A copy of a process with threads hangs, and Triton's has many.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    sys.executable = python()  # inside of Triton it may be another program
    multiprocessing.set_executable(sys.executable)


def _vllm_config(config: EngineConfig, *, headless: bool = False, **more: object) -> Any:
    """With `more` of vLLM's arguments; `headless`: for workers alone. Raises ConfigError."""
    known = {field.name for field in fields(AsyncEngineArgs)}
    arguments = vllm_arguments(config, known, on_cpu=current_platform.is_cpu())
    try:
        return AsyncEngineArgs(**arguments, **more).create_engine_config(UsageContext.ENGINE_CONTEXT, headless)
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"vLLM does not take these settings: {_line(error)}") from error


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


async def _try_out(llm: AsyncLLM, step_tokens: int) -> float:
    """Seconds of a step as large as they get, and of one of a token. Raises what it raises."""
    length = max(1, min(step_tokens, llm.model_config.max_model_len - 2))
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)
    longest = 0.0
    for token_id in (0, 1):  # the first time something may be set up that is none of a step's work
        longest, begin = 0.0, time.monotonic()
        async for _ in llm.generate(tokens_input([token_id] * length), params, f"try-out-{token_id}"):
            longest, begin = max(longest, time.monotonic() - begin), time.monotonic()
    return longest
