"""docs/operations.md and docs/runbook.md name what exists, and their numbers are right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from chat_engine.config import EngineConfig
from chat_engine.service.metrics import FAMILIES
from chat_gateway.http.metrics import Metrics
from chat_gateway.settings import GatewaySettings
from tests.helm.cases import defaults
from tests.helm.objects import flags
from tests.monitoring.chart import alerts, dashboard, rendered, rules
from tests.monitoring.grafana import expressions
from tests.monitoring.page import BOTH, INLINE, PAGE, ROOT, RUNBOOK, adapter_rules, anchors, rows, yaml_blocks
from tests.monitoring.promql import metrics, selectors

NO_VALUES = {"ca.crt"}
GIB = 1 << 30


def test_the_values_exist() -> None:
    named = re.findall(r"--set ([\w.]+)=", BOTH)
    named += [word[1] for word in (re.fullmatch(r"([a-zA-Z]\w*(?:\.\w+)+)(?:=.*)?", word) for word in INLINE) if word]
    named += [word for word in INLINE if word in defaults()]
    assert len(named) > 100
    assert [path for path in named if path not in NO_VALUES and not exists(path)] == []


def exists(path: str) -> bool:
    for beginning, names in OPEN.items():
        if path.startswith(beginning):
            return path.removeprefix(beginning) in names
    value: Any = defaults()
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


OPEN = {
    "engine.": set(EngineConfig.model_fields),
    "canary.engine.": set(EngineConfig.model_fields),
    "gateway.settings.": {name.upper() for name in GatewaySettings.model_fields},
}
"""Values whose keys are named elsewhere."""


@pytest.mark.parametrize(
    "names",
    [
        ["my-values.yaml"],
        *(["my-values.yaml", f"{name}-values.yaml"] for name in ("canary", "tensor", "nodes", "adapters")),
    ],
    ids=lambda names: names[-1],
)
def test_the_values_files_can_be_used(names: list[str]) -> None:
    values = {key: value for name in names for key, value in yaml_blocks()[name].items()}
    with_route = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}
    assert rendered({"model": {"source": "hub"}, **values, **with_route}).of("PrometheusRule")


def test_the_metrics_exist() -> None:
    named = {word for word in re.findall(r"\w+", BOTH) if re.match(r"(triton_chat|gen_ai|nv|kube)_", word)}
    engine = {family.name for family in FAMILIES}
    gateway = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    gateway |= {f"{family.name}" for family in Metrics().registry.collect()}
    used = metrics([rule["expr"] for rule in rules()]) | metrics(expressions(dashboard()))
    adapted = {rule["name"]["as"] for rule in adapter_rules()}
    assert len(named) > 10
    assert named - engine - gateway - used - adapted == set()


def test_the_adapter_gives_the_metrics_of_the_hpa() -> None:
    (hpa,) = rendered({"triton": {"autoscaling": {"type": "hpa"}}}).of("HorizontalPodAutoscaler")
    wanted = {metric["pods"]["metric"]["name"] for metric in hpa["spec"]["metrics"]}
    assert {rule["name"]["as"] for rule in adapter_rules()} == wanted
    for rule in adapter_rules():
        assert selectors(rule["seriesQuery"])
        assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    sections = re.findall(r"^## (TritonChat\w+)$\n\n(\w+)(?: or (\w+))?\.", RUNBOOK, re.MULTILINE)
    severities: dict[str, set[str]] = {}
    for rule in alerts():
        severities.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    documented = {name: {one.lower() for one in found if one} for name, *found in sections}
    assert documented == severities
    assert len(sections) == len(documented)


@pytest.mark.parametrize("text_of_page", [PAGE, RUNBOOK], ids=["operations", "runbook"])
def test_the_links_lead_somewhere(text_of_page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text_of_page):
        page, _, anchor = target.partition("#")
        text = text_of_page if not page else (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert not anchor or anchor in anchors(text), target


def test_the_bytes_of_a_token() -> None:
    table = rows(*SIZES)
    assert len(table) == 2
    for _, *numbers in table:
        layers, heads, dimension, size, tokens = (int(number.replace(",", "")) for number in numbers)
        assert size == 2 * layers * heads * dimension * 2
        assert tokens == GIB // size


def test_the_tokens_that_fit() -> None:
    sizes = [int(row[4].replace(",", "")) for row in rows(*SIZES)]
    head = ("model", "weights", "room on 80 GB (79 GiB usable)", "tokens", "room on 24 GB (22.5 GiB usable)", "tokens")
    for size, (_, weights, *cells) in zip(sizes, rows(*head), strict=True):
        for memory, room, tokens in ((79, *cells[:2]), (22.5, *cells[2:])):
            gib = float(room.removesuffix(" GiB"))
            assert gib == pytest.approx(0.9 * memory - float(weights.removesuffix(" GiB")) - 0.5 - 1, abs=0.2)
            assert int(tokens.replace(",", "")) == pytest.approx(gib * GIB / size, rel=0.01)


def test_the_tokens_that_fit_on_several_gpus() -> None:
    table = rows("model", "weights", "bytes a token", "GPUs", "room", "tokens")
    assert len(table) == 6
    for _, weights, size, gpus, room, tokens in table:
        count, usable = re.fullmatch(r"(\d+) x \d+ GB \(([\d.]+) GiB usable\)", gpus).groups()  # type: ignore[union-attr]
        gib = float(room.removesuffix(" GiB"))
        assert gib == pytest.approx(
            int(count) * (0.9 * float(usable) - 2) - float(weights.removesuffix(" GiB")), abs=0.5
        )
        assert int(tokens.replace(",", "")) == pytest.approx(gib * GIB / int(size.replace(",", "")), rel=0.01)
    assert {size for _, _, size, *_ in table} == {f"{2 * 80 * 8 * 128 * 2:,}", f"{8 * 61 * 576 * 2:,}"}


SIZES = ("model, in bf16", "layers", "KV heads", "head dimension", "bytes a token", "tokens in a GiB")


def test_the_times_of_a_stop() -> None:
    times = {step: seconds for step, seconds, _ in rows("step", "seconds", "what happens")}
    pod = rendered().pod("triton")
    triton = pod.container("triton")
    assert times["preStop"] == triton["lifecycle"]["preStop"]["exec"]["command"][1]
    assert times["`--exit-timeout-secs`"].endswith(f"= {flags(triton)['--exit-timeout-secs']}")
    assert times["`terminationGracePeriodSeconds`"].endswith(f"= {pod.spec['terminationGracePeriodSeconds']}")
    assert times["engine's drain time"].endswith(f"= {defaults()['drainSeconds']}")
