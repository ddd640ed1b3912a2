"""What becomes of those who are let in when more comes than can be served: `python -m benchmarks.overload --help`.

A tritonserver with models/tiny-chat, and two gateways in front of it: one with its default limit of the estimated wait
(TRITON_CHAT_GATEWAY_MAX_QUEUE_SECONDS), one without. First the most that the server answers in a second is measured;
then requests arrive at random (Poisson) at parts and multiples of that, whatever becomes of the earlier ones.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from local.gateway import LocalGateway
from local.options import GatewayOptions, TritonOptions
from local.triton import LocalTriton

LOADS = (0.5, 1.0, 2.0, 4.0)
PATIENCE = 3.0
"""An answer is in time if it takes at most so many times the median at half of the load."""

console = Console(stderr=True)


@dataclass
class Outcome:
    """Of one load; seconds from the request to the end of the answer."""

    load: float
    seconds: list[float] = field(default_factory=list)
    num_refused: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def in_time(self, within_s: float) -> int:
        return sum(seconds <= within_s for seconds in self.seconds)


class Asker:
    """Requests of the same length, each with a prompt of its own."""

    def __init__(self, client: httpx2.AsyncClient, tokens: int) -> None:
        self._client = client
        self._tokens = tokens
        self._numbers: Iterator[int] = iter(range(1 << 60))

    async def ask(self, outcome: Outcome) -> None:
        """Notes how long it took, or that it was refused."""
        body = {
            "model": "chat", "messages": [{"role": "user", "content": f"Question {next(self._numbers)}: who are you?"}],
            "max_tokens": self._tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        began = time.perf_counter()
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
                outcome.num_refused += 1
                return
            response.raise_for_status()
            lines = [line async for line in response.aiter_lines()]
        if lines[-2:-1] != ["data: [DONE]"] and lines[-1] != "data: [DONE]":
            raise RuntimeError(f"an answer ended early: {lines[-1]}")
        outcome.seconds.append(time.perf_counter() - began)


async def capacity(asker: Asker, streams: int, seconds: float) -> float:
    """Answers per second with so many callers, each of whom asks again at once."""
    outcome, ends_at = Outcome(0.0), time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < ends_at:
            await asker.ask(outcome)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(streams)))
    return len(outcome.seconds) / (time.perf_counter() - began)


async def offered(asker: Asker, load: float, per_second: float, seconds: float) -> Outcome:
    """What becomes of requests that arrive at random."""
    outcome, chance = Outcome(load), random.Random(load)
    async with asyncio.TaskGroup() as group:
        ends_at = time.perf_counter() + seconds
        while time.perf_counter() < ends_at:
            group.create_task(asker.ask(outcome))
            await asyncio.sleep(chance.expovariate(load * per_second))
    return outcome


async def measure(
    gateway: LocalGateway, per_second: float | None, seconds: float, tokens: int, streams: int
) -> tuple[float, list[Outcome]]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=gateway.url, limits=limits, timeout=600) as client:
        asker = Asker(client, tokens)
        if per_second is None:
            await capacity(asker, streams, 5)
            per_second = await capacity(asker, streams, seconds)
            console.print(f"capacity: {per_second:.1f} answers/s")
        outcomes = []
        for load in LOADS:
            outcomes.append(await offered(asker, load, per_second, seconds))
            console.print(f"load {load:g}: {len(outcomes[-1].seconds)} answers, {outcomes[-1].num_refused} refused")
    return per_second, outcomes


def show(name: str, outcomes: list[Outcome], seconds: float) -> None:
    """A row for each load, against the best of them."""
    within_s = PATIENCE * outcomes[0].median
    peak = max(outcome.in_time(within_s) for outcome in outcomes)
    table = Table("load", "answered", "refused", "p50, s", "in time per s", "of the peak", title=name)
    for outcome in outcomes:
        good = outcome.in_time(within_s)
        table.add_row(
            f"{outcome.load:g}", str(len(outcome.seconds)), str(outcome.num_refused), f"{outcome.median:.2f}",
            f"{good / seconds:.1f}", f"{good / peak:.0%}",
        )  # fmt: skip
    Console().print(table)


def main(
    seconds: Annotated[float, typer.Option(help="For each load.")] = 40.0,
    tokens: Annotated[int, typer.Option(help="Of each answer.")] = 100,
    streams: Annotated[int, typer.Option(help="Sequences that the engine runs at the same time.")] = 16,
) -> None:
    """Compare the gateway with and without its limit of the estimated wait, under overload."""
    folder = Path(tempfile.mkdtemp(prefix="overload-"))
    settings = folder / "engine.json"
    settings.write_text(f'{{"model": "unset", "threads": 1, "max_sequences": {streams}}}')
    options = TritonOptions(
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        engine_config=settings,
        models=("chat",),
        log_path=folder / "triton.log",
    )
    ways = {"limit of the estimated wait (default)": {}, "no limit": {"TRITON_CHAT_GATEWAY_MAX_QUEUE_SECONDS": "0"}}
    per_second = None
    with LocalTriton(options) as triton:
        for name, more in ways.items():
            env = {"TRITON_CHAT_GATEWAY_LOG_LEVEL": "warning", **more}
            gateway_options = GatewayOptions(port=0, extra_env=env, log_path=folder / "gateway.log")
            with LocalGateway(gateway_options, triton.grpc_address) as gateway:
                per_second, outcomes = asyncio.run(measure(gateway, per_second, seconds, tokens, streams))
            show(name, outcomes, seconds)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        typer.run(main)
