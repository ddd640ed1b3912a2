"""What weights of 8 bits change: perplexity, greedy answers and speed, beside the checkpoint as it is.

`python -m benchmarks.quantization --help`
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.jobs import make_jobs
from benchmarks.workload import LLAMA_500M, make_checkpoint
from chat_engine.config import EngineConfig, parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams, TokenEvent
from local.options import CACHE

RANDOM = "random-0.5b"
TINY = Path(__file__).parents[1] / "models" / "tiny-chat"
STREAMS = (1, 8, 32)

console = Console(stderr=True)


@dataclass
class Measured:
    """Of one form of a model."""

    perplexity: float
    answers: list[list[int]]
    rates: dict[int, list[float]] = field(default_factory=lambda: {streams: [] for streams in STREAMS})


class Model:
    """A checkpoint in an engine that is stepped by hand.

    Args:
        config: its settings.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._encoder = PromptEncoder.load(config)
        self._runner = ModelRunner(config)
        self._number = itertools.count()

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, in which special tokens may be spelled out."""
        return list(self._encoder.backend.encode(text, add_special_tokens=False).ids)

    def run(
        self, prompts: list[list[int]], max_tokens: int, prompt_logprobs: int | None = None
    ) -> list[list[TokenEvent]]:
        """The events of each prompt, all of them at once, greedily, to the last token."""
        engine = NativeEngine(self._config, self._runner, self._encoder.backend)
        heard: list[list[TokenEvent]] = [[] for _ in prompts]
        sampling = SamplingParams(
            temperature=0, ignore_eos=True, prompt_logprobs=prompt_logprobs, return_token_ids=True
        )
        for prompt, events in zip(prompts, heard, strict=True):
            engine.submit(ChatRequest(f"r{next(self._number)}", tuple(prompt), sampling, max_tokens, 0), events.append)
        while engine.step():
            pass
        engine.close()
        return heard

    def perplexity(self, texts: list[str]) -> float:
        """Of some texts, each by itself."""
        scores = [
            token.logprob
            for events in self.run([self.ids(text) for text in texts], 1, prompt_logprobs=0)
            for event in events
            for token in event.prompt_tokens
            if token.logprob is not None
        ]
        return math.exp(-statistics.fmean(scores))

    def answers(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy ones, as token ids."""
        return [[i for event in events for i in event.token_ids] for events in self.run(prompts, max_tokens)]

    def rate(self, streams: int, tokens: int, seed: int) -> float:
        """Output tokens per second of so many streams."""
        prompts = [job.prompt_ids for job in make_jobs(streams, seed)]
        most = self._runner.limits.vocab_size
        prompts = [[token % most for token in prompt][: self._runner.limits.max_model_len // 2] for prompt in prompts]
        begin = time.perf_counter()
        self.run(prompts, tokens)
        return streams * tokens / (time.perf_counter() - begin)


def main(
    model: Annotated[str, typer.Option(help=f"Hub id or folder of a checkpoint, or {RANDOM}, made here.")] = str(TINY),
    texts: Annotated[
        Path | None, typer.Option(help="Texts to measure on, one a line; by default questions kept from tiny-chat.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measured rounds of speed, after one to warm up.")] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Compare a checkpoint in 8 bits with itself: how far it is off, and how much faster."""
    if model == RANDOM:
        with console.status("making a checkpoint"):
            model = str(make_checkpoint(CACHE / "bench" / RANDOM, LLAMA_500M))
    models = {}
    for form in (None, "int8"):
        with console.status(f"loading: {form or 'as it is'}"):
            config = {"model": model, "device": "cpu", "threads": threads, "queue_room": 4096}
            models[form or "as it is"] = Model(parse_config({**config, **({"quantization": form} if form else {})}))
    whole, begun = lines(texts) if texts else questions() if model == str(TINY) else noise()
    measured = {}
    for name, loaded in models.items():
        with console.status(f"perplexity and answers: {name}"):
            answers = loaded.answers([loaded.ids(text) for text in begun], tokens)
            measured[name] = Measured(loaded.perplexity(whole), answers)
    for number in range(rounds + 1):
        for streams in STREAMS:
            for name, loaded in models.items():
                with console.status(f"round {number} of {rounds}: {name}, {streams} streams"):
                    rate = loaded.rate(streams, tokens, seed=1000 * number + streams)
                if number:
                    measured[name].rates[streams].append(rate)
    show(measured)


def noise() -> tuple[list[str], list[str]]:
    """Words that a model of random weights has no opinion on."""
    texts = [job.prompt for job in make_jobs(16)]
    return texts, texts


def lines(file: Path) -> tuple[list[str], list[str]]:
    """Texts, and the first halves of some, to be continued."""
    found = [line for line in file.read_text().splitlines() if line.strip()]
    return found, [line[: len(line) // 2] for line in found[:64] if len(line) > 1]


def questions() -> tuple[list[str], list[str]]:
    """Conversations that tiny-chat was not trained on, and the same up to the answer."""
    template = AutoTokenizer.from_pretrained(TINY).apply_chat_template
    whole, begun = [], []
    for line in (TINY / "dialogues.jsonl").read_text().splitlines():
        dialogue = json.loads(line)
        for phrasing in dialogue["phrasings"]:
            if phrasing["split"] != "train":
                turns = [{"role": "user", "content": phrasing["text"]}]
                answered = [*turns, {"role": "assistant", "content": dialogue["answer"]}]
                begun.append(str(template(turns, tokenize=False, add_generation_prompt=True)))
                whole.append(str(template(answered, tokenize=False)))
    return whole[:400], begun[:64]


def show(measured: dict[str, Measured]) -> None:
    """Prints the table that the documentation shows."""
    plain = next(iter(measured.values()))
    table = Table("weights", "perplexity", "same greedy tokens", *(f"{n} streams, tokens/s" for n in STREAMS))
    for name, found in measured.items():
        rates = (f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in found.rates.values())
        table.add_row(name, f"{found.perplexity:.3f}", f"{agreement(plain.answers, found.answers):.0%}", *rates)
    Console().print(table)


def agreement(answers: list[list[int]], others: list[list[int]]) -> float:
    """The part of all tokens that stand before the first difference of their answer."""
    same = 0
    for answer, other in zip(answers, others, strict=True):
        same += next((i for i, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b), len(answer))
    return same / sum(map(len, answers))


if __name__ == "__main__":
    typer.run(main)
