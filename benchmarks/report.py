"""The answers in Markdown and in JSON: one section for each question."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.answers import Answer
from benchmarks.contenders import ALL, ALONE, LEVELS
from benchmarks.figures import LEAST_SHARE, Limits, Served, Spread, knee, percentile
from benchmarks.loads import Arrivals, Load, Seen
from benchmarks.runner import Results

LOADS, LEVELS_QUESTION, LATENCY = "loads", "levels", "latency"

T = TypeVar("T")


def closed(loads: Iterable[Load]) -> list[Load]:
    """Those that measure one figure."""
    return [load for load in loads if not isinstance(load, Arrivals)]


def arrivals(loads: Iterable[Load]) -> list[Arrivals]:
    """Those of the sweep, by rate."""
    return sorted((load for load in loads if isinstance(load, Arrivals)), key=lambda load: load.rate)


def kept_of_alone(rounds: Mapping[str, Sequence[Seen]], load: Load) -> dict[str, list[float]]:
    """Level -> the part of the bare engine's speed that is left, round by round."""
    alone = rounds.get(ALONE, ())
    return {
        level: [
            seen.figure / base.figure if load.more_is_better else base.figure / seen.figure
            for base, seen in zip(alone, rounds[level], strict=False)
        ]
        for level in LEVELS
        if alone and rounds.get(level)
    }


def served(results: Results, loads: Iterable[Load]) -> dict[str, dict[float, Served]]:
    """Contender -> rate -> what became of the requests of all rounds."""
    found: dict[str, dict[float, Served]] = {}
    for load in arrivals(loads):
        for name, rounds in results.seen.get(load.name, {}).items():
            answers = [answer for seen in rounds for answer in seen.answers]
            of_rate = Served.of(answers, len(rounds) * load.seconds, load.limits)
            found.setdefault(name, {})[load.rate] = of_rate
    return found


def markdown(results: Results, loads: Sequence[Load], about: str) -> str:
    """The whole report."""
    parts = [about, *_loads_part(results, loads), *_levels_part(results, loads), *_latency_part(results, loads)]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {name}: {reason}" for name, reason in results.left_out.items())]
    return "\n\n".join(parts) + "\n"


def _loads_part(results: Results, loads: Sequence[Load]) -> list[str]:
    parts = [_load_table(load, results.seen[load.name]) for load in closed(loads) if results.seen.get(load.name)]
    if not parts:
        return []
    how = "First token and time per token: median of all requests, in ms."
    return ["## Loads", how, f"![Loads]({LOADS}.png)", *parts]


def _load_table(load: Load, rounds: Mapping[str, Sequence[Seen]]) -> str:
    rows = [["contender", load.unit, "min to max", "quartiles", "first token", "per token"]]
    for name, of_one in in_order(rounds).items():
        spread = Spread.of([seen.figure for seen in of_one])
        answers = [answer for seen in of_one for answer in seen.answers]
        rows.append([
            name, number(spread.median), f"{number(spread.least)} to {number(spread.most)}",
            f"{number(spread.low)} to {number(spread.high)}", milliseconds([a.first_token_s for a in answers], 0.5),
            milliseconds([a.per_token_s for a in answers if a.tokens > 1], 0.5),
        ])  # fmt: skip
    return f"### {load.title[0].upper()}{load.title[1:]}\n\n{table(rows)}"


def _levels_part(results: Results, loads: Sequence[Load]) -> list[str]:
    rows = [["load", *LEVELS]]
    for load in closed(loads):
        kept = kept_of_alone(results.seen.get(load.name, {}), load)
        if len(kept) > 1:
            rows.append([load.title, *(_percent(kept[level]) if level in kept else "" for level in LEVELS)])
    if len(rows) == 1:
        return []
    how = "What each door leaves of the bare engine's speed: median of the rounds (min to max)."
    return ["## Levels", how, f"![Levels]({LEVELS_QUESTION}.png)", table(rows)]


def _latency_part(results: Results, loads: Sequence[Load]) -> list[str]:
    found, sweep = served(results, loads), arrivals(loads)
    if not found:
        return []
    rows = [["contender", "requests/s", "kept", "goodput/s", "first token p50, p95, p99", "per token p50, p95, p99"]]
    for name, rates in in_order(found).items():
        best = knee({rate: of_rate.share for rate, of_rate in rates.items()})
        rows += [_latency_row(name, rate, of_rate, rate == best) for rate, of_rate in rates.items()]
    return [
        "## Latency under load", _limits_text(sweep[0].limits), f"![Latency]({LATENCY}.png)", table(rows),
    ]  # fmt: skip


def _latency_row(name: str, rate: float, of_rate: Served, is_knee: bool) -> list[str]:
    first, token = of_rate.first_tokens, of_rate.per_token
    return [
        name, f"**{rate:g}** (knee)" if is_knee else f"{rate:g}", f"{of_rate.share:.0%}", f"{of_rate.goodput:.2f}",
        ", ".join(milliseconds(first, part) for part in (0.5, 0.95, 0.99)),
        ", ".join(milliseconds(token, part) for part in (0.5, 0.95, 0.99)),
    ]  # fmt: skip


def _limits_text(limits: Limits) -> str:
    return (
        f"Requests arrive by chance (Poisson), whatever became of the earlier ones. Kept: the first token within "
        f"{1e3 * limits.first_token:.0f} ms, and at most {1e3 * limits.per_token:.0f} ms for each later one. The knee "
        f"is the highest rate at which {LEAST_SHARE:.0%} keep that. Times in ms; those given up count as endless."
    )


def in_order(found: Mapping[str, T]) -> dict[str, T]:
    """By contender, in the order in which they are listed."""
    return {one.name: found[one.name] for one in ALL if one.name in found}


def table(rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; the first row is the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def number(value: float) -> str:
    """With three digits that count, or all before the point."""
    if not math.isfinite(value):
        return "endless"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if 0 < abs(value) < 100 else f"{value:,.0f}"


def milliseconds(seconds: Sequence[float], part: float) -> str:
    """A percentile."""
    return number(1e3 * percentile(seconds, part)) if seconds else ""


def _percent(parts: Sequence[float]) -> str:
    return f"{statistics.median(parts):.0%} ({min(parts):.0%} to {max(parts):.0%})"


def as_json(results: Results, loads: Sequence[Load], about: Mapping[str, Any]) -> dict[str, Any]:
    """All that was measured, request by request. Where there is no number, because it never came, stands null."""
    return {
        "about": dict(about),
        "left_out": results.left_out,
        "idle_share": results.idle_share,
        "loads": {
            load.name: {
                "title": load.title,
                "unit": load.unit,
                "contenders": {
                    name: [{"figure": seen.figure, "answers": list(map(_answer, seen.answers))} for seen in rounds]
                    for name, rounds in results.seen.get(load.name, {}).items()
                },
            }
            for load in loads
        },
    }


def _answer(answer: Answer) -> dict[str, float | None]:
    times = {"first_token_s": answer.first_token_s, "per_token_s": answer.per_token_s}
    return {"tokens": answer.tokens, **{name: t if math.isfinite(t) else None for name, t in times.items()}}
