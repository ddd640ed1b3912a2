"""What serves one model, put together from its settings: the only place that knows every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chat_engine.answering.grammar import Grammars
from chat_engine.config import EngineConfig
from chat_engine.native.engine import NativeEngine
from chat_engine.native.generation_defaults import in_vocabulary
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


def _native(config: EngineConfig, on_failure: Callable[[], None]) -> Serving:
    thread = ModelThread()
    try:
        runner = thread.call(lambda: ModelRunner(config))
        prompts = PromptEncoder.load(config)
        limits, defaults = runner.limits, runner.defaults
        prompts.check_vocabulary(limits.vocab_size)
        written = find_format(prompts.tokenizer, prompts.backend, prompts.template, config.answer_format)
    except Exception:
        thread.close()
        raise
    answers = AnswerRules(config, (written, prompts.backend) if written else None)
    parser = RequestParser(
        prompts, config, limits.max_model_len, limits.vocab_size, defaults.sampling, defaults.max_tokens, answers
    )
    end_ids = in_vocabulary("an end token of the tokenizer or the chat template", prompts.end_ids, limits.vocab_size)
    grammars = Grammars(prompts.backend, limits.vocab_size, defaults.eos_ids | end_ids, config)
    engine = NativeEngine(config, runner, prompts.backend, on_failure, thread, end_ids, grammars)
    return Serving(parser, engine, config.drain_seconds)
