"""The engine against its peers, on one seeded workload in one run: `python -m benchmarks.engine --help`.

Every contender gets the same requests at once and must give each its exact number of tokens, greedily. Rounds are
interleaved, so that a busy machine hurts all alike; the first, which pays for set-up, is thrown away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
from chat_engine.engine import ChatEngine
from chat_engine.model_runner import ModelRunner
from chat_engine.prompt import PromptEncoder
from chat_engine.request import ChatRequest, SamplingParams, TokenEvent
from local.settings import CACHE, TritonSettings
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


def library_continuous_batching(model: PreTrainedModel) -> Contender:
    """transformers' own continuous batching, told never to stop early."""
    greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=2)

    def run(jobs: list[Job]) -> int:
        with model.continuous_batching_context_manager(generation_config=greedy, timeout=5) as manager:  # type: ignore[operator]
            for job in jobs:
                manager.add_request(job.prompt_ids, max_new_tokens=job.max_tokens, eos_token_id=-1)
            tokens = done = 0
            while done < len(jobs):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done += 1
                    tokens += len(result.generated_tokens)
        return tokens

    return run


def own_engine(engine: ChatEngine) -> Contender:
    """The engine by itself: requests in, events out."""

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
            assert engine.wait_for_room(600)
            engine.submit(request, sink)
        for _ in jobs:
            done.acquire()
        return sum(counts)

    return run


def through_triton(address: str) -> Contender:
    """The engine behind tritonserver: one gRPC stream a request, all open at once."""

    async def ask(client: AsyncChatClient, job: Job) -> int:
        tokens = 0
        async for event in client.stream(
            prompt=job.prompt, max_tokens=job.max_tokens, temperature=0, ignore_eos=True, idle_timeout=600
        ):
            tokens = event.num_output_tokens
        return tokens

    async def ask_all(jobs: list[Job]) -> int:
        async with AsyncChatClient(address) as client:
            return sum(await asyncio.gather(*(ask(client, job) for job in jobs)))

    return lambda jobs: asyncio.run(ask_all(jobs))


def measure(contenders: dict[str, Contender], jobs: list[Job], rounds: int) -> list[Result]:
    """Runs every contender `rounds` times, and once before that to warm up."""
    results = {name: Result(name) for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            label = f"round {round_number} of {rounds}" if round_number else "warm-up"
            with console.status(f"{label}: {name}"):
                begin = time.perf_counter()
                tokens = run(jobs)
                seconds = time.perf_counter() - begin
            expected = sum(job.max_tokens for job in jobs)
            if tokens != expected:
                raise RuntimeError(f"{name} gave {tokens} tokens instead of {expected}")
            console.print(f"{label}: {name}: {expected / seconds:.0f} tokens/s")
            if round_number:
                results[name].rates.append(expected / seconds)
    return list(results.values())


@contextmanager
def served_engine(settings: dict[str, object]) -> Iterator[str]:
    """A real tritonserver with the engine; gives its gRPC address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.json"
        path.write_text(json.dumps(settings))
        triton = TritonSettings(
            http_port=0, grpc_port=0, metrics_port=0, model=str(settings["model"]), engine_config=path, models=("chat",)
        )
        with LocalTriton(triton) as server:
            yield server.grpc_address


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
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 3,
    requests: Annotated[int, typer.Option(help="Requests, all sent at once.")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads of every contender.")] = 2,
    only: Annotated[str, typer.Option(help="Run only contenders whose name holds this.")] = "",
    output: Annotated[Path | None, typer.Option(help="Also write the rates to this JSON file.")] = None,
) -> None:
    """Compare the engine with transformers' ways to generate, on an 82M-parameter bf16 Llama made here."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    checkpoint = make_checkpoint(CACHE / "bench" / "llama-82m")
    settings: dict[str, object] = {"model": str(checkpoint), "threads": threads, "max_sequences": requests}
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        library: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
        contenders["generate, one at a time"] = one_at_a_time(library)
        contenders["generate, static batches of 8"] = static_batches(library, 8)
        peer: PreTrainedModel = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
        contenders[PEER] = library_continuous_batching(peer)
        config = parse_config({**settings, "prefix_caching": False})
        engine = ChatEngine(config, ModelRunner(config), PromptEncoder.load(config).backend)
        stack.callback(engine.close)
        contenders[ENGINE] = own_engine(engine)
        contenders[SERVED] = through_triton(stack.enter_context(served_engine({**settings, "prefix_caching": False})))
        chosen = {name: run for name, run in contenders.items() if only in name}
        results = measure(chosen, make_jobs(requests), rounds)
    show(results, threads)
    if output:
        output.write_text(json.dumps({result.name: result.rates for result in results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
