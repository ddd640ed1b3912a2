"""What the chart is tested with: the values of ci/, versions of Kubernetes, and the APIs of common add-ons."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.helm.paths import CHART
from tests.helm.versions import KUBERNETES, NEWEST, OLDEST

__all__ = [
    "ADD_ONS",
    "KUBERNETES",
    "NEWEST",
    "OLDEST",
    "Case",
    "ci_case",
    "ci_cases",
    "defaults",
    "effective",
    "merged",
]

Values = dict[str, Any]

ADD_ONS = (
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "keda.sh/v1alpha1",
    "keda.sh/v1alpha1/ScaledObject",
    "leaderworkerset.x-k8s.io/v1",
    "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet",
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1/HTTPRoute",
    "gateway.networking.k8s.io/v1/GRPCRoute",
)
"""As a cluster with Prometheus Operator, KEDA, LeaderWorkerSet and the Gateway API has them."""

_SUFFIX = "-values.yaml"


@dataclass(frozen=True)
class Case:
    """A file of ci/. Its first line may be `# kubernetes: >=1.31`: then older versions are refused."""

    name: str
    values: Values = field(hash=False, compare=False)
    since: str = OLDEST

    def runs_on(self, kubernetes: str) -> bool:
        return KUBERNETES.index(kubernetes) >= KUBERNETES.index(self.since)

    def __str__(self) -> str:
        return self.name


@cache
def ci_cases() -> tuple[Case, ...]:
    return tuple(_read(path) for path in sorted((CHART / "ci").glob(f"*{_SUFFIX}")))


def ci_case(name: str) -> Case:
    return next(case for case in ci_cases() if case.name == name)


@cache
def defaults() -> Values:
    """values.yaml; not to be changed."""
    values: Values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return values


def merged(values: Values, base: Values | None = None) -> Values:
    """`values` over `base` (the defaults), as Helm merges them: maps key by key, all else whole."""
    result = dict(defaults() if base is None else base)
    for key, value in values.items():
        below = result.get(key)
        result[key] = merged(value, below) if isinstance(value, dict) and isinstance(below, dict) else value
    return result


def effective(case: Case) -> Values:
    """The values of a case, the defaults included."""
    return merged(case.values)


def _read(path: Path) -> Case:
    text = path.read_text(encoding="utf-8")
    since = re.match(r"# kubernetes: >=(\d+\.\d+)\n", text)
    return Case(path.name.removesuffix(_SUFFIX), yaml.safe_load(text) or {}, since[1] if since else OLDEST)
