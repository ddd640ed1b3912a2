"""What guessing ahead by n-grams brings, in a good case and in a bad one: `python -m benchmarks.speculation --help`.

tiny-chat answers questions one after the other. In the good case the conversation holds the question and its answer
already, as a text that is to be summarised, or code that is to be changed, holds most of what comes; in the bad case it
does not.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from chat_engine.config import parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams, TokenEvent

TINY = Path(__file__).parents[1] / "models" / "tiny-chat"
console = Console(stderr=True)


def conversations(count: int) -> dict[str, list[str]]:
    """Prompts of each case."""
    template = AutoTokenizer.from_pretrained(TINY).apply_chat_template
    cases: dict[str, list[str]] = {"good": [], "bad": []}
    for line in (TINY / "dialogues.jsonl").read_text().splitlines()[:count]:
        dialogue = json.loads(line)
        question = {"role": "user", "content": dialogue["phrasings"][0]["text"]}
        answered = [question, {"role": "assistant", "content": dialogue["answer"]}, question]
        for case, turns in (("bad", [question]), ("good", answered)):
            cases[case].append(str(template(turns, tokenize=False, add_generation_prompt=True)))
    return cases


class Guessing:
    """tiny-chat, with guesses or without."""

    def __init__(self, tokens: int, threads: int) -> None:
        speculation = {"speculation": {"ngram": {"tokens": tokens}}} if tokens else {}
        settings = {"model": str(TINY), "device": "cpu", "threads": threads, "prefix_caching": False}
        self._config = parse_config({**settings, **speculation})
        self._encoder = PromptEncoder.load(self._config)
        self._runner = ModelRunner(self._config)
        self._number = itertools.count()

    def run(self, prompts: list[str]) -> tuple[float, float, list[str]]:
        """Answers one after the other; tokens per second, the part of guesses that were right, and the texts."""
        engine = NativeEngine(self._config, self._runner, self._encoder.backend, end_ids=self._encoder.end_ids)
        texts = []
        begin = time.perf_counter()
        for prompt in prompts:
            ids = tuple(self._encoder.backend.encode(prompt, add_special_tokens=False).ids)
            events: list[TokenEvent] = []
            engine.submit(
                ChatRequest(f"r{next(self._number)}", ids, SamplingParams(temperature=0), 96, 0), events.append
            )
            while engine.step():
                pass
            texts.append("".join(event.text for event in events))
        seconds = time.perf_counter() - begin
        stats = engine.stats()
        engine.close()
        return stats.generation_tokens / seconds, stats.accepted_tokens / max(1, stats.drafted_tokens), texts


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    questions: Annotated[int, typer.Option(help="Questions of a round.")] = 20,
    tokens: Annotated[int, typer.Option(help="Guesses of a step.")] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Answer questions with guesses and without, in turns, and see that the answers are the same."""
    with console.status("loading"):
        forms = {"without": Guessing(0, threads), f"with {tokens} guesses": Guessing(tokens, threads)}
    table = Table("case", "guesses", "tokens/s, median (min to max)", "right")
    for case, prompts in conversations(questions).items():
        rates: dict[str, list[float]] = {name: [] for name in forms}
        right, answers = dict.fromkeys(forms, 0.0), {}
        for number in range(rounds + 1):
            for name, form in forms.items():
                with console.status(f"{case} case, round {number} of {rounds}: {name}"):
                    rate, right[name], answers[name] = form.run(prompts)
                if number:
                    rates[name].append(rate)
        if len({tuple(texts) for texts in answers.values()}) > 1:
            raise RuntimeError("the answers differ")
        for name, found in rates.items():
            spread = f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
            table.add_row(case, name, spread, f"{right[name]:.0%}" if name != "without" else "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
