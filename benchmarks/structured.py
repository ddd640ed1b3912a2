"""What constrained answers cost: `python -m benchmarks.structured --help`.

The time to compile typical schemas, the time of a mask, and output tokens per second with none, half and all of 32
streams constrained, in turns, so that a busy machine hurts all alike.
"""

from __future__ import annotations

import json
import os
import statistics
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.jobs import VOCAB_SIZE, Job, make_jobs
from benchmarks.structured_workload import ENDLESS, TYPICAL, Rates, in_turns, show
from benchmarks.workload import make_checkpoint
from chat_engine.answering.grammar import Grammars
from chat_engine.answering.guide import Guide
from chat_engine.config import EngineConfig, parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.masks import MaskFiller
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.sampler import SamplingState, sample
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.reading.structured import constraint_of, lenient_outputs
from chat_engine.request import ChatRequest, Constraint, SamplingParams, StructuredOutputs, TokenEvent
from chat_engine.service.model_thread import ModelThread
from local.options import CACHE

_SPECIAL = ["<s>", "</s>", "<pad>"]  # as in the checkpoint
_END = frozenset({1})
_STEPS = 100


def make_byte_checkpoint(folder: Path) -> Path:
    """The checkpoint of the other benchmarks with a byte-level tokenizer, trained on Python's own library."""
    if (folder / "ready").exists():
        return folder
    make_checkpoint(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((path.read_text("utf-8", errors="replace") for path in sources), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")  # noqa: S106
    fast.save_pretrained(folder)
    (folder / "ready").touch()
    return folder


def compile_times(encoder: PromptEncoder, config: EngineConfig, repeats: int) -> dict[str, list[float]]:
    """Seconds, with the trial, of grammars that are not known yet."""
    grammars = Grammars(encoder.backend, VOCAB_SIZE, _END, config)
    grammars.compile(_constraint({"choice": ["a"]}, config))  # starts the process for trials
    times = {}
    for name, outputs in TYPICAL.items():
        wanted = _constraint(outputs, config)
        times[name] = [_seconds(partial(grammars.compile, _anew(wanted, i))) for i in range(repeats)]
    grammars.close()
    return times


def mask_times(encoder: PromptEncoder, config: EngineConfig, rows: int) -> tuple[list[float], list[float]]:
    """Seconds to fill the masks of a step, and to sample with them, for `rows` that answer at random."""
    grammars = Grammars(encoder.backend, VOCAB_SIZE, _END, config)
    grammar = grammars.compile(_constraint(ENDLESS, config))
    filler, params = MaskFiller(VOCAB_SIZE, torch.device("cpu")), SamplingParams()
    states = [SamplingState.start(params, seed, _END, ()) for seed in range(rows)]
    guides = [Guide(_END, _END, grammar) for _ in states]
    for state, guide in zip(states, guides, strict=True):
        state.guide = guide
    logits, fills, samples = torch.randn(rows, VOCAB_SIZE), [], []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        with filler.filling(states) as masks:
            assert masks
            masks.forbidden()
            fills.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            chosen = sample(logits, states, masks)
            samples.append(time.perf_counter() - begin)
        for state, guide, choice in zip(states, guides, chosen, strict=True):
            state.append(choice.token_id)
            guide.append(choice.token_id)
    grammars.close()
    return fills, samples


@contextmanager
def own_engine(settings: dict[str, object]) -> Iterator[Callable[[list[Job], float], float]]:
    """Output tokens per second of all jobs at once, of which a share is constrained."""
    config = parse_config(settings)
    thread = ModelThread()
    runner = thread.call(lambda: ModelRunner(config))
    backend = PromptEncoder.load(config).backend
    grammars = Grammars(backend, VOCAB_SIZE, runner.defaults.eos_ids, config)
    engine = NativeEngine(config, runner, backend, thread=thread, grammars=grammars)
    endless = _constraint(ENDLESS, config)

    def run(jobs: list[Job], share: float) -> float:
        done, counts = threading.Semaphore(0), []

        def sink(event: TokenEvent) -> None:
            if event.finish_reason is not None:
                counts.append(event.num_output_tokens)
                done.release()

        begin = time.perf_counter()
        for index, job in enumerate(jobs):
            guided = endless if index < share * len(jobs) else None
            sampling = SamplingParams(temperature=1, ignore_eos=True)
            name = f"{time.monotonic_ns()}-{index}"
            engine.submit(
                ChatRequest(name, tuple(job.prompt_ids), sampling, job.max_tokens, index, constraint=guided), sink
            )
        for _ in jobs:
            done.acquire()
        seconds = time.perf_counter() - begin
        expected = sum(job.max_tokens for job in jobs)
        if sum(counts) != expected:
            raise RuntimeError(f"{sum(counts)} tokens instead of {expected}")
        return expected / seconds

    yield run
    engine.close()


def measure(settings: dict[str, object], requests: int, rounds: int) -> Rates:
    """The rates of each share, in turns."""
    with own_engine(settings) as run:
        return in_turns(partial(run, make_jobs(requests)), rounds)


def _constraint(outputs: dict[str, Any], config: EngineConfig) -> Constraint:
    return constraint_of(StructuredOutputs.model_validate(lenient_outputs(outputs)), config)


def _anew(constraint: Constraint, number: int) -> Constraint:
    """The same grammar, written so that it is not known."""
    return replace(constraint, grammar=constraint.grammar + " " * (number + 1))


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _percentiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{cuts[49] * 1e3:.2f}, {cuts[98] * 1e3:.2f}"


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    requests: Annotated[int, typer.Option(help="Requests, all sent at once.")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads of the engine.")] = 2,
    repeats: Annotated[int, typer.Option(help="How often each grammar is compiled.")] = 100,
    output: Annotated[Path | None, typer.Option(help="Also write the rates to this JSON file.")] = None,
) -> None:
    """Measure constrained answers, on an 82M-parameter bf16 Llama made here."""
    torch.set_num_threads(threads)
    settings: dict[str, object] = {
        "model": str(make_byte_checkpoint(CACHE / "bench" / "llama-82m-bytes")), "threads": threads,
        "max_sequences": requests, "prefix_caching": False,
    }  # fmt: skip
    config = parse_config(settings)
    encoder = PromptEncoder.load(config)
    table = Table("grammar", "compile, ms: p50, p99")
    for name, seconds in compile_times(encoder, config, repeats).items():
        table.add_row(name, _percentiles(seconds))
    Console().print(table)
    fills, samples = mask_times(encoder, config, requests)
    print(f"masks of {requests} rows, ms: p50, p99: {_percentiles(fills)}; sampling with them: {_percentiles(samples)}")
    rates = measure(settings, requests, rounds)
    show(rates)
    print(f"torch {torch.__version__}, {threads} threads, {os.cpu_count()} cores")
    if output:
        output.write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
