"""A picture for each question."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.contenders import ALL, LEVELS
from benchmarks.figures import Served, Spread, knee, percentile
from benchmarks.loads import Load
from benchmarks.report import LATENCY, LEVELS_QUESTION, LOADS, arrivals, closed, kept_of_alone, served
from benchmarks.runner import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, OTHERS = "#76b900", "#8a8f98"
_COLOURS = {one.name: mpl.colormaps["tab10"](place) for place, one in enumerate(ALL)}


def draw(results: Results, loads: Sequence[Load], folder: Path) -> list[Path]:
    """Writes those for which there are numbers."""
    pictures = {
        LOADS: draw_loads(results, loads),
        LEVELS_QUESTION: draw_levels(results, loads),
        LATENCY: draw_latency(results, loads),
    }
    written = []
    for name, figure in pictures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110, bbox_inches="tight")
    return written


def draw_loads(results: Results, loads: Sequence[Load]) -> Figure | None:
    """A panel for each load: medians, all rounds, least to most."""
    asked = [load for load in closed(loads) if results.seen.get(load.name)]
    if not asked:
        return None
    names = [one.name for one in ALL if any(one.name in results.seen[load.name] for load in asked)]
    columns = min(2, len(asked))
    rows = math.ceil(len(asked) / columns)
    figure = Figure(figsize=(7.5 * columns, (1.1 + 0.34 * len(names)) * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, load in zip(panels, asked, strict=False):
        rounds = results.seen[load.name]
        _bars(panel, {name: [seen.figure for seen in rounds[name]] for name in names if name in rounds})
        panel.set_title(f"{load.title}\n({'more' if load.more_is_better else 'less'} is better)", fontsize=10)
        panel.set_xlabel(load.unit)
    for panel in panels[len(asked) :]:
        panel.set_axis_off()
    return figure


def _bars(panel: Axes, figures: Mapping[str, Sequence[float]]) -> None:
    ours = {one.name for one in ALL if one.ours}
    for place, (name, values) in enumerate(figures.items()):
        spread = Spread.of(values)
        panel.barh(place, spread.median, color=OURS if name in ours else OTHERS, height=0.65)
        panel.hlines(place, spread.least, spread.most, color="black", linewidth=1)
        panel.plot(values, [place] * len(values), "|", color="black", markersize=7)
    panel.set_yticks(range(len(figures)), list(figures))
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)


def draw_levels(results: Results, loads: Sequence[Load]) -> Figure | None:
    """What each door leaves of the engine's speed, load by load."""
    kept = {load.title: kept_of_alone(results.seen.get(load.name, {}), load) for load in closed(loads)}
    kept = {title: levels for title, levels in kept.items() if len(levels) > 1}
    if not kept:
        return None
    figure = Figure(figsize=(9, 1.2 + 0.75 * len(kept)), layout="constrained")
    panel = figure.subplots()
    height = 0.8 / len(LEVELS)
    for number, level in enumerate(LEVELS):
        there = [(place, levels[level]) for place, levels in enumerate(kept.values()) if level in levels]
        places = [place + (number - 1) * height for place, _ in there]
        medians = [100 * statistics.median(parts) for _, parts in there]
        panel.barh(places, medians, height=0.9 * height, label=level, color=OURS, alpha=1 - 0.3 * number)
        for place, (_, parts) in zip(places, there, strict=True):
            panel.hlines(place, 100 * min(parts), 100 * max(parts), color="black", linewidth=1)
    panel.set_yticks(range(len(kept)), list(kept))
    panel.invert_yaxis()
    panel.axvline(100, color="black", linewidth=0.8, linestyle=":")
    panel.set_xlabel("% of the speed of the engine alone")
    panel.legend(loc="upper center", bbox_to_anchor=(0.3, -0.12), ncols=len(LEVELS), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def draw_latency(results: Results, loads: Sequence[Load]) -> Figure | None:
    """First token, time per token and goodput by rate; a star marks the knee."""
    found, sweep = served(results, loads), arrivals(loads)
    if not found:
        return None
    limits = sweep[0].limits
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    first, token, good = figure.subplots(1, 3)
    for name, rates in found.items():
        _line(first, name, rates, {rate: 1e3 * percentile(one.first_tokens, 0.95) for rate, one in rates.items()})
        _line(token, name, rates, {rate: 1e3 * percentile(one.per_token, 0.95) for rate, one in rates.items()})
        _line(good, name, rates, {rate: one.goodput for rate, one in rates.items()})
    offered = [load.rate for load in sweep]
    good.plot(offered, offered, color="black", linewidth=0.8, linestyle=":", label="offered")
    for panel, limit, title in (
        (first, limits.first_token, "first token, p95, ms"),
        (token, limits.per_token, "time per token, p95, ms"),
    ):
        panel.axhline(1e3 * limit, color="black", linewidth=0.8, linestyle=":")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_title(title)
    good.set_title("requests/s that keep the limits (star: the knee)")
    for panel in (first, token, good):
        panel.set_xlabel("requests/s that arrive")
        panel.set_xscale("log", base=2)
        panel.set_xticks(offered, [f"{rate:g}" for rate in offered])
        panel.spines[["top", "right"]].set_visible(False)
    good.legend(frameon=False, fontsize=9)
    return figure


def _line(panel: Axes, name: str, rates: Mapping[float, Served], values: Mapping[float, float]) -> None:
    """What never came is not drawn."""
    there = {rate: value for rate, value in values.items() if math.isfinite(value)}
    panel.plot(list(there), list(there.values()), "o-", markersize=4, label=name, color=_COLOURS[name])
    best = knee({rate: of_rate.share for rate, of_rate in rates.items()})
    if best in there:
        panel.plot(best, there[best], "*", markersize=15, color=_COLOURS[name])
