"""Runs all loads on all contenders, in turns, so that a busy machine hurts all alike."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.contenders import Contender, Given
from benchmarks.loads import Load, Seen
from benchmarks.peers import MissingError
from benchmarks.worker import EndedError, Worker, worker
from local.service import ServerError

IDLE_S = 2.0
IDLE_SHARE = 0.05
"""Of one core; more than that, and those who wait disturb the one that is measured."""

console = Console(stderr=True)


@dataclass
class Results:
    """All that was seen.

    Attributes:
        seen: load -> contender -> one for each round.
        left_out: contender -> the reason.
        failed: names of contenders that broke down while they were measured.
        idle_share: of one core, that all contenders together take while nobody asks.
    """

    seen: dict[str, dict[str, list[Seen]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    left_out: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    idle_share: float = 0.0

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        console.print(f"left out: {name}: {reason}", style="yellow", highlight=False)


def measure(contenders: Mapping[Contender, Given], loads: Sequence[Sequence[Load]], *, apart: bool) -> Results:
    """`loads` are those of each round, the first of which warms up and is thrown away.

    `apart` runs all rounds of one contender before the next one starts. Ctrl-C ends it early.
    """
    results = Results()
    _say_what_is_not_asked(contenders, loads)
    groups = [{one: given} for one, given in contenders.items()] if apart else [dict(contenders)]
    try:
        for group in groups:
            with _started(group, results) as workers:
                _rounds(workers, loads, results)
    except KeyboardInterrupt:
        console.print("interrupted; the report has what was measured so far")
    return results


def _say_what_is_not_asked(contenders: Iterable[Contender], loads: Sequence[Sequence[Load]]) -> None:
    for one in contenders:
        reasons = {reason for of_round in loads for load in of_round if (reason := one.why_not(load))}
        for reason in sorted(reasons):
            names = {load.name for of_round in loads for load in of_round if one.why_not(load) == reason}
            console.print(f"{one.name}: without {', '.join(sorted(names))}: {reason}", highlight=False, soft_wrap=True)


@contextmanager
def _started(group: Mapping[Contender, Given], results: Results) -> Iterator[dict[Contender, Worker]]:
    """Those that got ready, all at once; why the others did not is noted."""
    with ExitStack() as stack:
        stacks = {one: stack.enter_context(ExitStack()) for one in group}

        def start(one: Contender) -> Worker | str:
            given = group[one]
            given.folder.mkdir(parents=True, exist_ok=True)
            try:
                door = stacks[one].enter_context(one.start(given))
                return stacks[one].enter_context(worker(door, given.folder / "worker.log"))
            except (MissingError, EndedError, ServerError) as error:
                return str(error)

        # Two at a time: more would only wait for each other's imports.
        with console.status(f"starting: {'; '.join(one.name for one in group)}"), ThreadPoolExecutor(2) as pool:
            found = dict(zip(group, pool.map(start, group), strict=True))
        for one, worker_or_reason in found.items():
            if isinstance(worker_or_reason, str):
                results.leave_out(one.name, worker_or_reason)
        yield {one: found_one for one, found_one in found.items() if isinstance(found_one, Worker)}


def _rounds(workers: dict[Contender, Worker], loads: Sequence[Sequence[Load]], results: Results) -> None:
    steps = sum(len(_takers(workers, load)) for of_round in loads for load in of_round)
    with _progress() as progress:
        bar = progress.add_task("", total=steps)
        place = 0
        for number, of_round in enumerate(loads):
            label = f"round {number} of {len(loads) - 1}" if number else "warm-up"
            for load in of_round:
                for one in in_turn(_takers(workers, load), place):
                    progress.update(bar, description=f"{label}: {load.title}: {one.name}")
                    seen = _run(workers, one, load, number, results)
                    progress.advance(bar)
                    if seen:
                        progress.console.print(
                            f"{label}: {load.title}: {one.name}: {seen.figure:.1f} {load.unit}",
                            highlight=False,
                            soft_wrap=True,
                        )
                place += 1
            if not number:
                _note_idle(results)


def _takers(workers: Mapping[Contender, Worker], load: Load) -> list[Contender]:
    return [one for one in workers if one.why_not(load) is None]


def _run(workers: dict[Contender, Worker], one: Contender, load: Load, number: int, results: Results) -> Seen | None:
    """One that breaks down is left out from then on."""
    try:
        seen = workers[one].run(load, number)
    except EndedError as error:
        results.leave_out(one.name, f"while measured with {load.title}: {error}")
        results.failed.append(one.name)
        del workers[one]
        return None
    if number:
        results.seen[load.name][one.name].append(seen)
    return seen


def in_turn(contenders: list[Contender], place: int) -> list[Contender]:
    """Nobody is always the first."""
    start = place % len(contenders) if contenders else 0
    return contenders[start:] + contenders[:start]


def _note_idle(results: Results) -> None:
    """How much the contenders compute while nobody asks."""
    time.sleep(0.5)
    before = _cpu_seconds()
    time.sleep(IDLE_S)
    results.idle_share = max(results.idle_share, (_cpu_seconds() - before) / IDLE_S)
    if results.idle_share > IDLE_SHARE:
        console.print(
            f"While nobody asks, the contenders take {results.idle_share:.0%} of a core; consider --apart.",
            style="yellow",
        )


def _cpu_seconds() -> float:
    """Of all processes that this one has started."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console)
