"""How a decode step grows with the sequences that run and with their context: `python -m benchmarks.growth --help`.

The model's step is taken by itself: block tables of the size in question, over a cache of zeros, so that no prompt has
to be computed. What the engine does around it, choosing what runs and handing out tokens, is measured with a model that
answers at once.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import matplotlib as mpl

mpl.use("Agg")

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.workload import LLAMA_82M, Shape, make_checkpoint
from chat_engine.config import parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.generation_defaults import GenerationDefaults
from chat_engine.native.model_runner import ModelRunner
from chat_engine.native.runner import Row, RunnerLimits
from chat_engine.native.sampler import Sampled, SamplingState, Scored
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams
from local.options import CACHE

SEQUENCES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS: Final = (128, 512, 1024, 2048, 4096, 8192)
LONGEST: Final = Shape(**{**asdict(LLAMA_82M), "max_position_embeddings": max(CONTEXTS) + 64})
_GREEDY: Final = SamplingParams(temperature=0, ignore_eos=True)
_TOKEN: Final = 5

console = Console(stderr=True)


@dataclass(frozen=True)
class Grown:
    """Milliseconds of a step; medians.

    Attributes:
        model: by sequences and context; without those that the cache has no room for.
        engine: what the engine adds, by sequences.
        kv_bytes: of one token of a sequence.
    """

    model: dict[tuple[int, int], float]
    engine: dict[int, float]
    kv_bytes: int


class InstantRunner:
    """Answers a step before it begins: what is left is the engine's own work."""

    longest_pass = 0.0
    runs_ahead = False

    def __init__(self, limits: RunnerLimits, defaults: GenerationDefaults) -> None:
        self.limits = limits
        self.defaults = defaults

    def start(self, rows: list[Row]) -> Answered:
        """See `Runner.start`."""
        return Answered([Sampled(_TOKEN, None) if row.sampling else None for row in rows])


class Answered:
    """A step that is over."""

    def __init__(self, answers: list[Sampled | Scored | None]) -> None:
        self._answers = answers
        self.stale: list[int] = []

    def results(self) -> list[Sampled | Scored | None]:
        """See `Started.results`."""
        return self._answers


def model_step(runner: ModelRunner, sequences: int, context: int, steps: int) -> float | None:
    """Milliseconds; None where the cache has no room for it."""
    size = runner.limits.block_size
    each = -(-context // size)
    if sequences * each > runner.limits.num_blocks:
        return None
    rows = [
        Row([_TOKEN], context, list(range(i * each, (i + 1) * each)), SamplingState.start(_GREEDY, 0, frozenset(), ()))
        for i in range(sequences)
    ]
    return _median(lambda: runner.start(rows).results(), steps)


def engine_step(runner: ModelRunner, tokenizer: Tokenizer, model: Path, sequences: int, steps: int) -> float:
    """Milliseconds without the model's, of steps in which all sequences decode and each token is handed out as text."""
    config = parse_config({"model": str(model), "max_sequences": sequences})
    engine = NativeEngine(config, InstantRunner(runner.limits, runner.defaults), tokenizer)
    for i in range(sequences):
        request = ChatRequest(f"r{i}", (_TOKEN, _TOKEN + 1 + i), _GREEDY, 2 * steps + 16, 0)
        engine.submit(request, deque[object](maxlen=0).append)
    engine.step()  # the prompts
    found = _median(engine.step, steps)
    engine.close()
    return found


def _median(step: Callable[[], object], steps: int) -> float:
    times = []
    for number in range(steps + 2):
        begin = time.perf_counter()
        step()
        if number >= 2:
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def measure(folder: Path, shape: Shape, threads: int, kv_tokens: int, steps: int) -> Grown:
    """Loads a checkpoint of this shape, and goes through all sizes."""
    settings = {"model": str(folder), "threads": threads, "kv_cache_tokens": kv_tokens, "max_sequences": max(SEQUENCES)}
    config = parse_config(settings)
    with console.status("loading"):
        runner, tokenizer = ModelRunner(config), PromptEncoder.load(config).backend
    model, engine = {}, {}
    for sequences in SEQUENCES:  # before the model's threads have something to do
        engine[sequences] = engine_step(runner, tokenizer, folder, sequences, 10 * steps)
    for sequences in SEQUENCES:
        for context in CONTEXTS:
            with console.status(f"{sequences} sequences of {context} tokens"):
                found = model_step(runner, sequences, context, steps)
            if found is not None:
                model[sequences, context] = found
    return Grown(model, engine, shape.kv_bytes * (2 if torch.float32 == runner._model.dtype else 1))  # noqa: SLF001


def table(grown: Grown) -> Table:
    """A row for each number of sequences."""
    made = Table("sequences", *(f"{context:,} tokens" for context in CONTEXTS), "engine alone", title="ms for a step")
    for sequences in SEQUENCES:
        cells = [grown.model.get((sequences, context)) for context in CONTEXTS]
        shown = ("" if cell is None else f"{cell:.1f}" for cell in cells)
        made.add_row(str(sequences), *shown, f"{grown.engine[sequences]:.2f}")
    return made


def draw(grown: Grown) -> Figure:
    """Over sequences, a line for each context; beside it over context, a line for each number of sequences."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for context in CONTEXTS:
        points = [(s, grown.model[s, context]) for s in SEQUENCES if (s, context) in grown.model]
        left.plot(*zip(*points, strict=True), "o-", label=f"{context:,} tokens")
    left.plot(SEQUENCES, [grown.engine[s] for s in SEQUENCES], "k--", label="the engine without the model")
    left.set_xlabel("running sequences")
    for sequences in SEQUENCES:
        points = [(c, grown.model[sequences, c]) for c in CONTEXTS if (sequences, c) in grown.model]
        right.plot(*zip(*points, strict=True), "o-", label=f"{sequences}")
    right.set_xlabel(f"context of each in tokens ({grown.kv_bytes / 1024:.0f} KiB of cache a token)")
    right.legend(title="sequences", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    left.legend(fontsize=8)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_ylabel("ms for a step")
        panel.grid(visible=True, alpha=0.3)
    return figure


def main(
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    kv_tokens: Annotated[
        int, typer.Option(help="Tokens of the KV cache, at least 8,256; sizes that do not fit are left out.")
    ] = 262_144,
    steps: Annotated[int, typer.Option(help="Measured steps of each size.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder for growth.json and growth.png.")] = CACHE / "bench" / "report",
) -> None:
    """Measure a step of a Llama of 82M parameters with 1 to 256 sequences of 128 to 8,192 tokens."""
    with console.status("making a checkpoint"):
        folder = make_checkpoint(CACHE / "bench" / "llama-82m-long", LONGEST)
    grown = measure(folder, LONGEST, threads, kv_tokens, steps)
    output.mkdir(parents=True, exist_ok=True)
    rows = [{"sequences": s, "context": c, "ms": ms} for (s, c), ms in grown.model.items()]
    (output / "growth.json").write_text(json.dumps({"model": rows, "engine": grown.engine, "kv_bytes": grown.kv_bytes}))
    draw(grown).savefig(output / "growth.png", dpi=110, bbox_inches="tight")
    Console().print(table(grown))
    console.print(f"{output / 'growth.json'}, {output / 'growth.png'}")


if __name__ == "__main__":
    typer.run(main)
