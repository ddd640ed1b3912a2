"""What the gateway costs: the same requests to Triton's gRPC and through it: `python -m benchmarks.gateway --help`.

One server, one gateway, one client process. Throughput is measured in rounds that take turns; time to first token on
pairs of single requests, one by each way, in an order that changes from pair to pair. Both ways get each prompt as text
and stream the answer; the tokens that arrive are counted and must be exactly those asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.engine import Result, Setting, served_engine
from benchmarks.workload import Job, make_checkpoint, make_jobs
from local.gateway import LocalGateway
from local.options import CACHE, GatewayOptions
from triton_chat import AsyncChatClient

GRPC = "Triton gRPC"
GATEWAY = "gateway"

Way = Callable[[Job], Awaitable[float]]
"""Runs one job and returns its time to first token in seconds."""

console = Console(stderr=True)


def straight(client: AsyncChatClient) -> Way:
    """A gRPC stream by the SDK."""

    async def ask(job: Job) -> float:
        result = await client.generate(
            prompt=job.prompt, max_tokens=job.max_tokens, temperature=0, ignore_eos=True, idle_timeout=600
        )
        _check(job, result.num_input_tokens, result.num_output_tokens)
        assert result.ttft_s is not None
        return result.ttft_s

    return ask


def through_gateway(client: httpx2.AsyncClient) -> Way:
    """A `/v1/completions` stream by a bare HTTP client, so that no client library is measured."""

    async def ask(job: Job) -> float:
        body = {
            "model": "chat", "prompt": job.prompt, "max_tokens": job.max_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        begin, first, last = time.perf_counter(), 0.0, ""
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.perf_counter()
                    last = line
        usage = json.loads(last.removeprefix("data: "))["usage"]
        _check(job, usage["prompt_tokens"], usage["completion_tokens"])
        return first - begin

    return ask


def _check(job: Job, num_input: int, num_output: int) -> None:
    if (num_input, num_output) != (len(job.prompt_ids), job.max_tokens):
        raise RuntimeError(f"{num_input} and {num_output} tokens for {len(job.prompt_ids)} and {job.max_tokens}")


@asynccontextmanager
async def both_ways(grpc_address: str, gateway: LocalGateway) -> AsyncIterator[dict[str, Way]]:
    """Connected clients of both."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        AsyncChatClient(grpc_address) as client,
        httpx2.AsyncClient(base_url=gateway.url, limits=limits, timeout=600) as http,
    ):
        yield {GRPC: straight(client), GATEWAY: through_gateway(http)}


async def throughput(ways: dict[str, Way], jobs: list[Job], rounds: int) -> list[Result]:
    """Output tokens per second with all jobs at once."""
    results = [Result(name) for name in ways]
    tokens = sum(job.max_tokens for job in jobs)
    for round_number in range(rounds + 1):
        for result, ask in zip(results, ways.values(), strict=True):
            begin = time.perf_counter()
            await asyncio.gather(*(ask(job) for job in jobs))
            rate = tokens / (time.perf_counter() - begin)
            label = f"round {round_number} of {rounds}" if round_number else "warm-up"
            console.print(f"{label}: {result.name}: {rate:.0f} tokens/s")
            if round_number:
                result.rates.append(rate)
    return results


async def first_tokens(ways: dict[str, Way], pairs: int) -> dict[str, list[float]]:
    """Seconds to the first token of single short requests; the same job by both ways in each pair."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    rng = random.Random(0)
    for job in make_jobs(pairs, seed=1):
        short = Job(job.prompt_ids[:32], 4)
        for name in rng.sample(list(ways), len(ways)):
            times[name].append(await ways[name](short))
    return times


def show(results: list[Result], times: dict[str, list[float]], setting: Setting) -> None:
    """Prints what the documentation shows."""
    table = Table("way", "output tokens/s, median (min to max)", "time to first token, ms, median (quartiles)")
    for result in results:
        low, middle, high = (1e3 * q for q in statistics.quantiles(times[result.name], n=4))
        spread = f"{result.median:.0f} ({min(result.rates):.0f} to {max(result.rates):.0f})"
        table.add_row(result.name, spread, f"{middle:.1f} ({low:.1f} to {high:.1f})")
    Console().print(table)
    grpc, gateway = results
    ratios = [b / a for a, b in zip(grpc.rates, gateway.rates, strict=True)]
    added = [1e3 * (b - a) for a, b in zip(times[GRPC], times[GATEWAY], strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    print(f"throughput of the gateway: {statistics.median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})")
    print(f"added to the first token: {middle:.1f} ms (quartiles {low:.1f} to {high:.1f})")
    print(f"{setting.places} streams, {setting.threads} engine threads, {os.cpu_count()} cores for everything")


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")] = 5,
    streams: Annotated[int, typer.Option(help="Requests, all sent at once.")] = 32,
    pairs: Annotated[int, typer.Option(help="Pairs of single requests for the time to first token.")] = 50,
    threads: Annotated[int, typer.Option(help="CPU threads of the engine.")] = 2,
) -> None:
    """Compare the gateway with Triton's gRPC, on the workload of benchmarks.engine."""
    setting = Setting(make_checkpoint(CACHE / "bench" / "llama-82m-words"), threads, streams)

    async def measure(grpc_address: str, gateway: LocalGateway) -> tuple[list[Result], dict[str, list[float]]]:
        async with both_ways(grpc_address, gateway) as ways:
            return await throughput(ways, make_jobs(streams), rounds), await first_tokens(ways, pairs)

    with served_engine(setting.engine_settings()) as grpc_address:
        quiet = {"TRITON_CHAT_GATEWAY_LOG_LEVEL": "warning"}
        with LocalGateway(GatewayOptions(port=0, extra_env=quiet), grpc_address) as gateway:
            show(*asyncio.run(measure(grpc_address, gateway)), setting)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        typer.run(main)
