"""What the chart renders for Prometheus and Grafana."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tests.helm.engines import NAMESPACE, RELEASE, Helm4
from tests.helm.objects import Objects

__all__ = ["NAMESPACE", "RELEASE", "alerts", "dashboard", "groups", "rendered"]

Values = dict[str, Any]
Rule = dict[str, Any]

_ALL_ON: Values = {
    "model": {"source": "embedded"},
    "monitoring": {"scrape": "podMonitor", "rules": {"enabled": True}, "dashboard": {"enabled": True}},
}


def rendered(values: Values | None = None) -> Objects:
    """With the rules and the dashboard; `values` come on top. Raises RefusedError."""
    return _rendered(json.dumps(_merged(_ALL_ON, values or {})))


def groups(values: Values | None = None) -> list[dict[str, Any]]:
    """Of the PrometheusRule."""
    (rule,) = rendered(values).of("PrometheusRule")
    return list(rule["spec"]["groups"])


def rules(values: Values | None = None) -> list[Rule]:
    return [rule for group in groups(values) for rule in group["rules"]]


def alerts(values: Values | None = None) -> list[Rule]:
    return [rule for rule in rules(values) if "alert" in rule]


def dashboard(values: Values | None = None) -> dict[str, Any]:
    config = rendered(values).one("ConfigMap", "-dashboard")
    (text,) = config["data"].values()
    parsed: dict[str, Any] = json.loads(text)
    return parsed


@cache
def _rendered(values: str) -> Objects:
    return Helm4().render(json.loads(values))


def _merged(below: Values, above: Values) -> Values:
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged
