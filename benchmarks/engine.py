"""The engine against its peers, on one seeded workload in one run: `python -m benchmarks.engine --help`.

Every contender has a process of its own, gets the same requests at once, and must give each its exact number of tokens,
greedily. Rounds are interleaved, so that a busy machine hurts all alike; the first, which pays for set-up, is thrown
away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.workload import Job, make_checkpoint, make_jobs
from chat_engine.config import parse_config
from chat_engine.native.engine import NativeEngine
from chat_engine.native.model_runner import ModelRunner
from chat_engine.reading.prompt_encoder import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams, TokenEvent
from chat_engine.service.model_thread import ModelThread
from local.options import CACHE, TritonOptions
from local.triton import LocalTriton
from triton_chat import AsyncChatClient

PEER = "transformers continuous batching"
ENGINE = "triton-chat engine"
SERVED = "triton-chat through Triton gRPC"

Contender = Callable[[list[Job]], int]
"""Runs all jobs, returns the number of output tokens."""

console = Console(stderr=True)


@dataclass
class Result:
    """Measured rates of one contender."""

    name: str
    rates: list[float] = field(default_factory=list)  # output tokens per second, one a round

    @property
    def median(self) -> float:
        """Output tokens per second."""
        return statistics.median(self.rates)


def one_at_a_time(model: PreTrainedModel) -> Contender:
    """`generate`, a request after the other."""

    def run(jobs: list[Job]) -> int:
        return sum(_generate(model, [job]) for job in jobs)

    return run


def static_batches(model: PreTrainedModel, size: int) -> Contender:
    """`generate` on left-padded batches in order of arrival; each batch lasts as long as its longest answer."""

    def run(jobs: list[Job]) -> int:
        for start in range(0, len(jobs), size):
            _generate(model, jobs[start : start + size])
        # What a batch makes beyond a request's own number of tokens does not count.
        return sum(job.max_tokens for job in jobs)

    return run


def _generate(model: PreTrainedModel, jobs: list[Job]) -> int:
    width = max(len(job.prompt_ids) for job in jobs)
    ids = torch.full((len(jobs), width), 2)
    mask = torch.zeros_like(ids)
    for row, job in enumerate(jobs):
        ids[row, width - len(job.prompt_ids) :] = torch.tensor(job.prompt_ids)
        mask[row, width - len(job.prompt_ids) :] = 1
    tokens = max(job.max_tokens for job in jobs)
    with torch.inference_mode():
        out = model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
    return int(out.shape[1] - width)


@contextmanager
def library_continuous_batching(model: PreTrainedModel) -> Iterator[Contender]:
    """transformers' own continuous batching, told never to stop early; started once, outside the measured time."""
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=2)
    start = model.continuous_batching_context_manager
    with start(generation_config=greedy, timeout=5) as manager:  # type: ignore[operator]

        def run(jobs: list[Job]) -> int:
            for job in jobs:
                manager.add_request(job.prompt_ids, max_new_tokens=job.max_tokens, eos_token_id=-1)
            tokens = done = 0
            while done < len(jobs):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done += 1
                    tokens += len(result.generated_tokens)
            return tokens

        yield run


@contextmanager
def own_engine(settings: dict[str, object]) -> Iterator[Contender]:
    """The engine by itself: requests in, events out."""
    config = parse_config(settings)
    thread = ModelThread()
    runner = thread.call(lambda: ModelRunner(config))
    engine = NativeEngine(config, runner, PromptEncoder.load(config).backend, thread=thread)

    def run(jobs: list[Job]) -> int:
        counts: list[int] = []
        done = threading.Semaphore(0)

        def sink(event: TokenEvent) -> None:
            if event.finish_reason is not None:
                counts.append(event.num_output_tokens)
                done.release()

        for index, job in enumerate(jobs):
            sampling = SamplingParams(temperature=0, ignore_eos=True)
            request = ChatRequest(f"{time.monotonic_ns()}-{index}", tuple(job.prompt_ids), sampling, job.max_tokens, 0)
            engine.submit(request, sink)
        for _ in jobs:
            done.acquire()
        return sum(counts)

    yield run
    engine.close()


def through_triton(address: str) -> Contender:
    """The engine behind tritonserver: one gRPC stream a request, all open at once."""

    async def ask(client: AsyncChatClient, job: Job) -> int:
        result = await client.generate(
            prompt=job.prompt, max_tokens=job.max_tokens, temperature=0, ignore_eos=True, idle_timeout=600
        )
        if result.num_input_tokens != len(job.prompt_ids):
            raise RuntimeError(f"a prompt of {len(job.prompt_ids)} tokens arrived as {result.num_input_tokens}")
        return result.num_output_tokens

    async def ask_all(jobs: list[Job]) -> int:
        async with AsyncChatClient(address) as client:
            return sum(await asyncio.gather(*(ask(client, job) for job in jobs)))

    return lambda jobs: asyncio.run(ask_all(jobs))


@contextmanager
def served_engine(settings: dict[str, object]) -> Iterator[str]:
    """A real tritonserver with the engine; gives its gRPC address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.json"
        path.write_text(json.dumps(settings))
        triton = TritonOptions(
            http_port=0, grpc_port=0, metrics_port=0, model=str(settings["model"]), engine_config=path, models=("chat",)
        )
        with LocalTriton(triton) as server:
            yield server.grpc_address


@dataclass(frozen=True)
class Setting:
    """What every contender is given."""

    checkpoint: Path
    threads: int
    places: int

    def library_model(self) -> PreTrainedModel:
        """A fresh transformers model."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype="auto")
        return model

    def engine_settings(self) -> dict[str, object]:
        """Prefix caching is off: the rounds repeat the same prompts."""
        return {
            "model": str(self.checkpoint), "threads": self.threads, "max_sequences": self.places,
            "prefix_caching": False,
        }  # fmt: skip


SETUPS: dict[str, Callable[[Setting, ExitStack], Contender]] = {
    "generate, one at a time": lambda s, _: one_at_a_time(s.library_model()),
    "generate, static batches of 8": lambda s, _: static_batches(s.library_model(), 8),
    PEER: lambda s, stack: stack.enter_context(library_continuous_batching(s.library_model())),
    ENGINE: lambda s, stack: stack.enter_context(own_engine(s.engine_settings())),
    SERVED: lambda s, stack: through_triton(stack.enter_context(served_engine(s.engine_settings()))),
}


def contend(name: str, setting: Setting, jobs: list[Job], pipe: Connection) -> None:
    """The process of one contender: runs all jobs whenever it is told to, and answers with the seconds it took."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(setting.threads)
    expected = sum(job.max_tokens for job in jobs)
    with ExitStack() as stack:
        run = SETUPS[name](setting, stack)
        pipe.send("ready")
        while pipe.recv():
            begin = time.perf_counter()
            tokens = run(jobs)
            seconds = time.perf_counter() - begin
            if tokens != expected:
                raise RuntimeError(f"{name} gave {tokens} tokens instead of {expected}")
            pipe.send(expected / seconds)


@contextmanager
def contender(name: str, setting: Setting, jobs: list[Job]) -> Iterator[Connection]:
    """A contender in a process of its own, so that its threads disturb nobody while it waits."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=contend, args=(name, setting, jobs, theirs))
    process.start()
    theirs.close()
    ours.recv()
    try:
        yield ours
    finally:
        ours.send(False)
        process.join()


def measure(names: list[str], setting: Setting, jobs: list[Job], rounds: int) -> list[Result]:
    """Runs every contender `rounds` times in turns, and once before that to warm up."""
    results = [Result(name) for name in names]
    with ExitStack() as stack:
        pipes = []
        for name in names:
            with console.status(f"starting: {name}"):
                pipes.append(stack.enter_context(contender(name, setting, jobs)))
        for round_number in range(rounds + 1):
            label = f"round {round_number} of {rounds}" if round_number else "warm-up"
            for result, pipe in zip(results, pipes, strict=True):
                with console.status(f"{label}: {result.name}"):
                    pipe.send(True)
                    rate = pipe.recv()
                console.print(f"{label}: {result.name}: {rate:.0f} tokens/s")
                if round_number:
                    result.rates.append(rate)
    return results


def show(results: list[Result], threads: int) -> None:
    """Prints the table that the documentation shows."""
    peer = next((result.median for result in results if result.name == PEER), None)
    table = Table("contender", "output tokens/s, median (min to max)", f"relative to {PEER}")
    for result in results:
        spread = f"{result.median:.0f} ({min(result.rates):.0f} to {max(result.rates):.0f})"
        table.add_row(result.name, spread, f"{result.median / peer:.2f}" if peer else "")
    Console().print(table)
    medians = {result.name: result.median for result in results}
    if ENGINE in medians and SERVED in medians:
        print(f"through Triton: {medians[SERVED] / medians[ENGINE]:.0%} of the engine alone")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, {threads} threads, {os.cpu_count()} cores")


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    requests: Annotated[int, typer.Option(help="Requests, all sent at once.")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads of every contender.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only contenders whose name holds this; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the rates to this JSON file.")] = None,
) -> None:
    """Compare the engine with transformers' ways to generate, on an 82M-parameter bf16 Llama made here."""
    names = [name for name in SETUPS if not only or any(part in name for part in only)]
    setting = Setting(make_checkpoint(CACHE / "bench" / "llama-82m-words"), threads, requests)
    results = measure(names, setting, make_jobs(requests), rounds)
    show(results, threads)
    if output:
        output.write_text(json.dumps({result.name: result.rates for result in results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
