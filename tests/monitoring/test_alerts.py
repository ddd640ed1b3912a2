"""Each alert fires when it should, with these labels and words; not just below, when idle, or at the start."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_engine.service.metrics import TIME_PER_OUTPUT_TOKEN, TIME_TO_FIRST_TOKEN
from tests.helm.engines import refusal
from tests.monitoring import chart, objectives, promtool
from tests.monitoring.page import ROOT, RUNBOOK, anchors
from tests.monitoring.promql import metrics

FILES = sorted((Path(__file__).parent / "alerts").glob("*.yaml"))


def test_the_rules_are_rules(rules_file: Path) -> None:
    assert f"{len(chart.rules())} rules found" in promtool.run("check", "rules", rules_file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_alerts(file: Path, tmp_path: Path) -> None:
    (group,) = [group for group in chart.groups() if group["name"] == f"triton-chat-{file.stem}"]
    shutil.copy(file, tmp_path)
    write(tmp_path / "rules.yaml", {"groups": [group]})
    promtool.run("test", "rules", tmp_path / file.name)


@pytest.mark.parametrize("objective", objectives.ALL, ids=lambda objective: objective.alert)
def test_objectives(objective: objectives.Objective, tmp_path: Path) -> None:
    """With its own rules alone, which takes much less time."""
    mine = [rule for rule in chart.rules() if f"{objective.ratio}:" in rule["expr"] + rule.get("record", "")]
    write(tmp_path / "rules.yaml", {"groups": [{"name": "mine", "rules": mine}]})
    for name, tests in (("minutes", objectives.tests(objective)), ("days", objectives.slow_tests(objective))):
        write(tmp_path / f"{name}.yaml", tests)
        promtool.run("test", "rules", tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(("objective", "minutes"), [(objectives.ALL[0], 46), (objectives.ALL[2], 11)])
def test_when_an_outage_pages(objective: objectives.Objective, minutes: int) -> None:
    """14.4 times the budget of an hour, and two minutes: 5% of 60 are 3, 1% are 0.6."""
    outage: objectives.Phases = [(360, 0), (60, 100)]
    paged = [time - 360 for time in range(360, 420) if "critical" in objectives.firing(objective, outage, time)]
    assert paged[0] == minutes
    assert f"{minutes} minutes where {objective.budget:.0%} may" in " ".join(RUNBOOK.split())


def write(path: Path, document: Any) -> None:
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def test_every_alert_is_tested_both_ways() -> None:
    wanted = {(rule["alert"], rule["labels"]["severity"]) for rule in chart.alerts()}
    fires, silent = set(), set()
    for case in cases():
        for expected in case.get("exp_alerts", []):
            fires.add((case["alertname"], expected["exp_labels"]["severity"]))
        if not case.get("exp_alerts"):
            silent.add(case["alertname"])
    assert fires == wanted
    assert silent == {alert for alert, _ in wanted}


def test_ratios_stand_before_the_alerts_that_read_them() -> None:
    """The rules of one group are evaluated in their order, those of several at any time."""
    for group in chart.groups():
        recorded: set[str] = set()
        for rule in group["rules"]:
            assert {name for name in metrics([rule["expr"]]) if ":" in name} <= recorded, rule
            recorded.add(rule.get("record", ""))


def cases() -> Iterator[dict[str, Any]]:
    documents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES]
    documents += [objectives.tests(objective) for objective in objectives.ALL]
    for document in documents:
        for group in document["tests"]:
            yield from group["alert_rule_test"]


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in chart.alerts():
        alert, labels, annotations = rule["alert"], rule["labels"], rule["annotations"]
        assert labels["severity"] in ("critical", "warning"), alert
        assert (labels["namespace"], labels["release"]) == (chart.NAMESPACE, chart.RELEASE), alert
        assert annotations["summary"].endswith("."), alert
        assert "$value" in annotations["description"], alert
        page, _, anchor = annotations["runbook_url"].partition("#")
        assert anchor in anchors((ROOT / page).read_text(encoding="utf-8")), alert


def test_the_runbook_url_is_where_the_values_say() -> None:
    url = "https://example.com/runbook"
    for rule in chart.alerts({"monitoring": {"rules": {"runbookUrl": url}}}):
        assert rule["annotations"]["runbook_url"] == f"{url}#{rule['alert'].lower()}"


def test_alerts_of_what_is_not_there_are_left_out() -> None:
    def names(values: dict[str, Any]) -> set[str]:
        return {rule["alert"] for rule in chart.alerts(values)}

    everything = names({})
    of_the_gateway = {"TritonChatGatewayErrors", "TritonChatGatewayRefusing"}
    assert everything - names({"gateway": {"enabled": False}}) == of_the_gateway
    assert "gateway" not in str(chart.groups({"gateway": {"enabled": False}})[0])
    assert everything - names({"triton": {"gpu": {"count": 0}}}) == {"TritonChatGpuMemoryFull"}


def test_patience_follows_from_the_time_of_loading() -> None:
    waits = {
        rule["alert"]: rule["for"]
        for rule in chart.alerts({"triton": {"loadSeconds": 1801}})
        if rule["alert"] in ("TritonChatAbsent", "TritonChatTargetDown", "TritonChatReplicasMissing")
    }
    assert set(waits.values()) == {"41m"}
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("objective", "family"),
    [("timeToFirstToken", TIME_TO_FIRST_TOKEN), ("timePerOutputToken", TIME_PER_OUTPUT_TOKEN)],
)
def test_objectives_are_boundaries_of_their_histogram(objective: str, family: Any) -> None:
    def values(seconds: float) -> dict[str, Any]:
        return {"monitoring": {"rules": {objective: {"seconds": seconds}}}}

    message = refusal(lambda: chart.rendered(values(3)))
    assert f"monitoring.rules.{objective}.seconds is 3" in message
    assert f"allowed are {', '.join(f'{boundary:g}' for boundary in family.buckets)}" in message
    for boundary in family.buckets:
        matchers = re.findall(rf'{family.name}_bucket\{{[^}}]*le=~"([^"]*)"', str(chart.rules(values(boundary))))
        assert matchers
        for matcher in matchers:
            # Prometheus 2 keeps what Triton writes, Prometheus 3 makes a float of it.
            assert {le for le in spellings(family.buckets) if re.fullmatch(matcher, le)} == {*spellings([boundary])}


def spellings(boundaries: Any) -> list[str]:
    return [spelling for boundary in boundaries for spelling in {f"{boundary:g}", str(float(boundary))}]


def test_rules_without_their_labels_are_refused() -> None:
    message = refusal(lambda: chart.rendered({"monitoring": {"scrape": "none"}}))
    assert 'monitoring.rules.enabled is true, but monitoring.scrape is "none"' in message


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("timeToFirstToken.percent", 93.9, 94),
        ("timePerOutputToken.percent", 90, 99.9),
        ("errorPercent", 6.1, 6),
    ],
)
def test_budgets_so_large_that_no_alert_could_fire_are_refused(path: str, wrong: float, right: float) -> None:
    def values(number: float) -> dict[str, Any]:
        rules: Any = number
        for key in reversed(path.split(".")):
            rules = {key: rules}
        return {"monitoring": {"rules": rules}}

    assert f"monitoring.rules.{path} is {wrong}" in refusal(lambda: chart.rendered(values(wrong)))
    assert chart.alerts(values(right))
