"""Writes the chart's Grafana dashboard: `python -m tools.dashboard`.

The words NAMESPACE, RELEASE and UID are filled in by the chart, so that each release brings a dashboard of its own that
opens on itself. Format: Grafana's dashboard JSON, schema version 39 (Grafana 10.3), which newer ones migrate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.dashboard_panels import ROWS, Panel, Query

TARGET = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "triton-chat" / "files" / "dashboard.json"

Json = dict[str, Any]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_COLOURS = ("green", "orange", "red")


@dataclass
class _Grid:
    """Places panels from left to right and from top to bottom, and numbers them."""

    x: int = 0
    y: int = 0
    height: int = 0
    number: int = field(default=0)

    def place(self, width: int, height: int) -> Json:
        if self.x + width > _WIDTH:
            self.wrap()
        position = {"x": self.x, "y": self.y, "w": width, "h": height}
        self.x += width
        self.height = max(self.height, height)
        self.number += 1
        return {"id": self.number, "gridPos": position}

    def wrap(self) -> None:
        self.x, self.y, self.height = 0, self.y + self.height, 0


def dashboard() -> Json:
    return {
        "title": "triton-chat NAMESPACE/RELEASE",
        "uid": "UID",
        "tags": ["triton-chat", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": list(_variables())},
        "annotations": {"list": []},
        "links": [],
        "panels": list(_panels()),
    }


def _variables() -> Iterator[Json]:
    running = "triton_chat_requests_running"
    yield {
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        "refresh": 1, "hide": 0, "includeAll": False, "multi": False, "options": [], "current": {},
    }  # fmt: skip
    yield _variable("namespace", f"label_values({running}, namespace)", "NAMESPACE")
    yield _variable("release", f'label_values({running}{{namespace="$namespace"}}, release)', "RELEASE")
    ours = f'{running}{{namespace="$namespace", release="$release"}}'
    yield _variable("track", f"label_values({ours}, track)")
    yield _variable("model", f"label_values({ours}, model)")


def _variable(name: str, query: str, current: str | None = None) -> Json:
    """One value, or, where none is given, any number of them and all at first."""
    several = current is None
    chosen: Json = {"text": ["All"], "value": ["$__all"]} if several else {"text": current, "value": current}
    return {
        "name": name, "label": name.capitalize(), "type": "query", "datasource": _SOURCE,
        "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1, "hide": 0,
        "includeAll": several, "multi": several, "options": [], "current": chosen,
    }  # fmt: skip


def _panels() -> Iterator[Json]:
    grid = _Grid()
    for row in ROWS:
        grid.wrap()
        yield {"type": "row", "title": row.title, "collapsed": False, "panels": [], **grid.place(_WIDTH, 1)}
        for panel in row.panels:
            yield {**_panel(panel), **grid.place(panel.width, panel.height)}


def _panel(panel: Panel) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": _thresholds(panel.limits),
    }
    if panel.kind == "timeseries":
        limits = "dashed" if panel.limits else "off"
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never", "thresholdsStyle": {"mode": limits}}
    if panel.from_zero:
        defaults["min"] = 0
    return {
        "type": panel.kind, "title": panel.title, "description": panel.description, "datasource": _SOURCE,
        "targets": [_target(panel, index, query) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
    }  # fmt: skip


def _target(panel: Panel, index: int, query: Query) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
        "instant": panel.kind == "stat",
        "range": panel.kind != "stat",
    }


def _thresholds(limits: Sequence[float]) -> Json:
    values = (None, *limits)
    steps = [{"color": colour, "value": value} for colour, value in zip(_COLOURS, values, strict=False)]
    return {"mode": "absolute", "steps": steps}


_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value", "graphMode": "none", "justifyMode": "auto", "textMode": "auto",
        "orientation": "auto", "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Blues", "scale": "exponential", "exponent": 0.5, "steps": 64},
        "yAxis": {"unit": "s"},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"mode": "single", "yHistogram": False},
    },
}  # fmt: skip


def text() -> str:
    """The file as it is committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
