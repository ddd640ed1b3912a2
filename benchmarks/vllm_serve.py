"""vLLM through Triton and the gateway against `vllm serve`: `python -m benchmarks.vllm_serve --help`.

Three servers of one checkpoint, with the same settings: `vllm serve` by itself, the engine vllm behind Triton and the
gateway, and the engine native behind them. One client streams `/v1/completions` with token ids from each of them in
turns. Every round, and every number of streams in it, has prompts of its own, the same for all servers; the first
round, which pays for set-up, is thrown away. Every answer must have exactly its number of tokens.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import httpx2
import typer

from benchmarks.vllm_servers import (
    DIRECT,
    OURS,
    SETTINGS,
    ModelShape,
    Setting,
    all_of,
    console,
    servers_of,
    vllm_version,
)
from benchmarks.workload import Job, make_checkpoint, make_jobs
from local.options import CACHE, ROOT

SHORT_PROMPT = 32
SHORT_ANSWER = 4
PLAUSIBLE = 1.05
"""More than this part of the throughput of `vllm serve` is none of the doors' doing."""


@dataclass(frozen=True)
class Plan:
    """How often, and with what.

    Attributes:
        rounds: measured ones, after one to warm up.
        answers: of each stream, one after the other.
        singles: single requests of a round, for the time to the first token.
    """

    rounds: int
    answers: int
    singles: int

    def jobs(self, round_number: int, streams: int) -> list[Job]:
        """All jobs of a round with so many streams."""
        return make_jobs(max(streams * self.answers, 4), seed=1_000_000 + 1_000 * round_number + streams)

    def short_jobs(self, round_number: int) -> list[Job]:
        """Asked one by one."""
        jobs = make_jobs(self.singles, seed=2_000_000 + round_number)
        return [Job(job.prompt_ids[:SHORT_PROMPT], SHORT_ANSWER) for job in jobs]


@dataclass
class Figures:
    """Of one server, round by round.

    Attributes:
        rates: streams -> output tokens per second.
        first_tokens: seconds to the first token of single requests.
    """

    rates: dict[int, list[float]] = field(default_factory=dict)
    first_tokens: list[list[float]] = field(default_factory=list)

    @property
    def all_first_tokens(self) -> list[float]:
        return [seconds for of_round in self.first_tokens for seconds in of_round]


async def ask(client: httpx2.AsyncClient, job: Job) -> float:
    """Seconds to the first token. Raises where the answer is not as long as it must be."""
    body = {
        "model": "chat", "prompt": job.prompt_ids, "max_tokens": job.max_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    begin, first, last = time.perf_counter(), 0.0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.is_error:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                last = line
                if not first and has_text(line):
                    first = time.perf_counter()
    check(job, last)
    return first - begin


def has_text(line: str) -> bool:
    """Whether this event of a stream brings text."""
    return any(choice.get("text") for choice in json.loads(line.removeprefix("data: ")).get("choices", ()))


def check(job: Job, last: str) -> None:
    """Raises where the last event does not count the tokens that were asked for."""
    usage = json.loads(last.removeprefix("data: ") or "{}").get("usage") or {}
    counted = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if counted != (len(job.prompt_ids), job.max_tokens):
        raise RuntimeError(f"{counted} tokens instead of {(len(job.prompt_ids), job.max_tokens)}: {last}")


async def rate(client: httpx2.AsyncClient, jobs: Sequence[Job], streams: int) -> float:
    """Output tokens per second of so many callers, each of whom takes the next job when one is done."""
    left = iter(jobs)

    async def caller() -> None:
        for job in left:
            await ask(client, job)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(caller())
    return sum(job.max_tokens for job in jobs) / (time.perf_counter() - begin)


async def first_tokens(clients: Mapping[str, httpx2.AsyncClient], jobs: Sequence[Job]) -> dict[str, list[float]]:
    """Seconds, job by job; each job is asked of all servers, in an order that changes."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    rng = random.Random(len(jobs))
    for job in jobs:
        for name in rng.sample(list(clients), len(clients)):
            times[name].append(await ask(clients[name], job))
    return times


async def measure(urls: Mapping[str, str], streams: Sequence[int], plan: Plan) -> dict[str, Figures]:
    """All rounds with the servers that are there."""
    figures = {name: Figures({count: [] for count in streams}) for name in urls}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(_client(url)) for name, url in urls.items()}
        for number in range(plan.rounds + 1):
            for count in streams:
                for name in _in_turn(list(urls), number):
                    found = await rate(clients[name], plan.jobs(number, count), count)
                    _say(number, plan, f"{name}: {count} streams: {found:.0f} tokens/s")
                    if number:
                        figures[name].rates[count].append(found)
            for name, times in (await first_tokens(clients, plan.short_jobs(number))).items():
                _say(number, plan, f"{name}: first token after {1e3 * statistics.median(times):.1f} ms")
                if number:
                    figures[name].first_tokens.append(times)
    return figures


def _client(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=600)


def _in_turn(names: list[str], number: int) -> list[str]:
    """Nobody is always the first."""
    start = number % len(names)
    return names[start:] + names[:start]


def _say(number: int, plan: Plan, what: str) -> None:
    console.print(f"{f'round {number} of {plan.rounds}' if number else 'warm-up'}: {what}")


DOUBTFUL = (
    "Doubtful: doors cannot make vLLM faster. The machine was not quiet, or the servers were not given the same; "
    "do not quote this run."
)


def ratios(figures: Mapping[str, Figures], streams: int) -> list[float]:
    """What is left of the throughput of `vllm serve`, round by round."""
    pairs = zip(figures[DIRECT].rates[streams], figures[OURS].rates[streams], strict=True)
    return [ours / theirs for theirs, ours in pairs]


def added(figures: Mapping[str, Figures]) -> list[float]:
    """Milliseconds that the first token takes longer than with `vllm serve`, job by job."""
    pairs = zip(figures[DIRECT].all_first_tokens, figures[OURS].all_first_tokens, strict=True)
    return [1e3 * (ours - theirs) for theirs, ours in pairs]


def report(figures: Mapping[str, Figures], setting: Setting, about: str) -> str:
    """The table of the documentation, as Markdown."""
    heads = ["server", *(f"{count} streams" if count > 1 else "1 stream" for count in setting.streams)]
    lines = [_row([*heads, "first token, ms"]), _row(["---"] * (len(heads) + 1))]
    for name, found in figures.items():
        rates = [_spread(found.rates[count]) for count in setting.streams]
        lines.append(_row([name, *rates, _quartiles([1e3 * t for t in found.all_first_tokens])]))
    lines += ["", "Output tokens/s, median (min to max); first token of single requests, median (quartiles)."]
    if {DIRECT, OURS} <= figures.keys():
        kept = [f"{_percent(ratios(figures, count))} at {count}" for count in setting.streams]
        lines += ["", f"Of `{DIRECT}`, {OURS}: {'; '.join(kept)} (streams; median of the rounds, min to max)."]
        lines += [f"Added to the first token: {_quartiles(added(figures))} ms (median, quartiles)."]
        if any(statistics.median(ratios(figures, count)) > PLAUSIBLE for count in setting.streams):
            lines += ["", DOUBTFUL]
    return "\n".join([*lines, "", about, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"


def _percent(parts: Sequence[float]) -> str:
    return f"{statistics.median(parts):.0%} ({min(parts):.0%} to {max(parts):.0%})"


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def described(setting: Setting, plan: Plan, vllm: str) -> str:
    """What was measured, in a sentence."""
    where = f"{len(setting.cpus)} threads of {os.cpu_count()} cores" if setting.cpus else "a GPU"
    return (
        f"{setting.dtype}, {where}, vLLM {vllm}, blocks of {setting.block_size} tokens, "
        f"{setting.kv_cache_tokens} tokens of KV cache, {plan.rounds} rounds, {plan.answers} answers a stream, "
        f"{'one server after the other' if setting.apart else 'in turns'}; load of the machine in the last quarter "
        f"of an hour {os.getloadavg()[2]:.1f}."
    )


def chosen(
    shape: ModelShape, streams: Sequence[int] | None, threads: int, dtype: str | None, apart: bool | None
) -> Setting:
    """The setting of a shape, with what the command line says otherwise."""
    setting = SETTINGS[shape]
    cpus = tuple(sorted(os.sched_getaffinity(0))[:threads]) if setting.cpus else ()
    return replace(
        setting,
        cpus=cpus,
        streams=tuple(streams or setting.streams),
        dtype=dtype or setting.dtype,
        apart=setting.apart if apart is None else apart,
    )


def main(
    model_shape: Annotated[
        ModelShape, typer.Option(help="Random weights of this shape: for a CPU, or for a GPU.")
    ] = ModelShape.LLAMA_82M,
    vllm_python: Annotated[
        Path, typer.Option(help="The Python of an environment with vLLM, for `vllm serve` and for the engine.")
    ] = ROOT / ".venv-vllm" / "bin" / "python",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds, after one to warm up.")] = 5,
    streams: Annotated[list[int] | None, typer.Option(min=1, help="Callers at the same time; repeatable.")] = None,
    answers: Annotated[int, typer.Option(min=1, help="Of each stream, one after the other.")] = 2,
    singles: Annotated[int, typer.Option(min=2, help="Single requests of a round, for the first token.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of every engine.")] = 2,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16; float32 for a CPU without 16-bit matrix products.")
    ] = None,
    apart: Annotated[
        bool | None, typer.Option("--apart/--in-turns", help="One server after the other, where one has room.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only servers whose name holds this; repeatable.")] = None,
    quick: Annotated[bool, typer.Option(help="A few minutes: 2 rounds, 1 answer a stream.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the table, the figures and the logs.")] = CACHE
    / "bench"
    / "vllm-serve",
) -> None:
    """Compare vLLM through Triton and the gateway with `vllm serve`, and with the engine native."""
    vllm = vllm_version(vllm_python)
    setting = chosen(model_shape, streams, threads, dtype, apart)
    plan = Plan(2, 1, 10) if quick else Plan(rounds, answers, singles)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(CACHE / "bench" / f"{model_shape.value}-words", setting.shape)
    servers = servers_of(setting, checkpoint, vllm_python, output)
    asked = {name: server for name, server in servers.items() if not only or any(part in name for part in only)}
    figures: dict[str, Figures] = {}
    for group in [{name: server} for name, server in asked.items()] if setting.apart else [asked]:
        with all_of(group) as urls:
            figures |= asyncio.run(measure(urls, setting.streams, plan))
    table = report(figures, setting, described(setting, plan, vllm))
    (output / "table.md").write_text(table)
    found = {name: asdict(of_server) for name, of_server in figures.items()}
    whole = {"setting": asdict(setting), "plan": asdict(plan), "vllm": vllm, "figures": found}
    (output / "figures.json").write_text(json.dumps(whole, indent=2) + "\n")
    print(table)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        typer.run(main)
