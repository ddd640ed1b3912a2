"""Every metric that an alert, the dashboard or an autoscaler asks for exists on a real server and gateway, and moves.

A real Prometheus scrapes both under a load that makes all of it move, and evaluates the rules of the chart. The server
has a small KV cache, few places and a short queue, and its engine can be told to wait and to fail.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.objects import Objects
from tests.integration.calls import eventually
from tests.integration.load import ENGINE, Load, fragile
from tests.integration.prometheus import Prometheus, Series, Target, prometheus
from tests.integration.servers import GatewayFactory, ServerFactory
from tests.monitoring import grafana
from tests.monitoring.chart import NAMESPACE, RELEASE, dashboard, groups, rendered
from tests.monitoring.page import adapter_rules
from tests.monitoring.promql import Selector, metrics, selectors
from triton_chat_server.serve.gpu import gpu_visible

VARIABLES = {**grafana.VARIABLES, "model": "chat|embeddings"}
KEDA = {"type": "keda", "prometheusAddress": "http://prometheus:9090"}

NEEDS_GPU = "needs a GPU"
NOT_HERE = {
    "kube_deployment_spec_replicas": "of kube-state-metrics",
    "kube_deployment_status_replicas_available": "of kube-state-metrics",
    "kube_pod_container_status_last_terminated_reason": "of kube-state-metrics",
    "kube_pod_container_status_restarts_total": "of kube-state-metrics",
    "kube_pod_init_container_status_restarts_total": "of kube-state-metrics",
    "kube_statefulset_replicas": "of kube-state-metrics",
    "kube_statefulset_status_replicas_ready": "of kube-state-metrics",
    "nv_gpu_memory_total_bytes": NEEDS_GPU,
    "nv_gpu_memory_used_bytes": NEEDS_GPU,
    "nv_gpu_power_usage": NEEDS_GPU,
    "nv_gpu_utilization": NEEDS_GPU,
}
"""What is asked for and cannot be here, with the reason; all else must be here."""


def asked_for() -> list[str]:
    """All expressions of the chart, and of the documentation."""
    scaled = rendered({"triton": {"autoscaling": KEDA}}).one("ScaledObject", "-triton")
    return [
        *(rule["expr"] for group in groups() for rule in group["rules"]),
        *grafana.expressions(dashboard(), VARIABLES),
        *(trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]),
        *(adapted(rule) for rule in adapter_rules()),
    ]


def adapted(rule: dict[str, Any]) -> str:
    """The query that prometheus-adapter makes of a rule, for the pods of Triton."""
    series = re.match(r"\w+", rule["seriesQuery"])
    assert series
    return (
        str(rule["metricsQuery"])
        .replace("<<.Series>>", series[0])
        .replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"{TRITON_POD}|another"')
        .replace("<<.GroupBy>>", "pod")
    )


TRITON_POD = f"{RELEASE}-triton-chat-triton-5d9c7b8f4-x7k2p"
GATEWAY_POD = f"{RELEASE}-triton-chat-gateway-7c6b5d4f9-q4w8z"


def target(component: str, pod: str, url: str, objects: Objects) -> Target:
    """As Prometheus Operator makes it of the chart's PodMonitor."""
    monitor = objects.one("PodMonitor", f"-{component}")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    meta = {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-z0-9_]', '_', name)}": value
        for name, value in objects.pod(component).labels.items()
    }
    return Target(url, {"namespace": NAMESPACE, "pod": pod, "container": component, **meta}, endpoint["relabelings"])


@pytest.fixture(scope="module")
def seen(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has watched all of it, and before that an idle server with no alert pending."""
    folder = tmp_path_factory.mktemp("monitoring")
    servers, gateways = ServerFactory(folder), GatewayFactory(folder)
    try:
        files = {"FAIL_WHEN_THERE": str(folder / "fail"), "WAIT_WHILE_THERE": str(folder / "gate")}
        triton = servers(ENGINE, files, repository=fragile(folder / "repository"))
        gateway = gateways(triton)
        objects = rendered()
        targets = [
            target("triton", TRITON_POD, triton.metrics_url, objects),
            target("gateway", GATEWAY_POD, gateway.metrics_url, objects),
        ]
        with prometheus(folder / "prometheus", groups(), targets) as watching:
            eventually(lambda: len(watching.query("up == 1")) == 2, within=30)
            eventually(lambda: not watching.alerts(), within=10)
            watching.note_the_time()
            load = Load(triton, gateway, watching)
            load.short_requests()
            load.more_than_fits()
            load.full_house(folder / "gate")
            load.failure(folder / "fail")
            load.death()
            triton.stop()
            eventually(lambda: watching.alerts() >= {"TritonChatDown", "TritonChatTargetDown"}, within=30)
            yield watching
    finally:
        gateways.stop_all()
        servers.stop_all()


def test_what_is_not_here_is_all_that_is_missing(seen: Prometheus) -> None:
    here = {series["metric"]["__name__"] for series in seen.query('last_over_time({__name__=~".+"}[1h])')}
    missing = metrics(asked_for()) - here
    of_gpus = {name for name, reason in NOT_HERE.items() if reason == NEEDS_GPU}
    assert missing - of_gpus == set(NOT_HERE) - of_gpus
    assert missing >= of_gpus or gpu_visible(os.environ)


def test_every_selector_finds_something_that_moves(seen: Prometheus) -> None:
    wanted = {selector for selector in selectors(*asked_for()) if selector.metric not in NOT_HERE}
    assert len(wanted) > 60
    missing = sorted(one.text for one in wanted if not seen.query(f"last_over_time({one.text}[1h])"))
    assert not missing
    still = sorted(one.text for one in wanted if not moves(seen, one))
    assert not still


def moves(seen: Prometheus, selector: Selector) -> bool:
    """Whether a value has changed, or was not there yet when nothing had been asked."""
    changed = f"changes({selector.text}[1h]) > 0"
    came = f"last_over_time({selector.text}[1h]) unless {selector.text} @ {seen.noted_at}"
    return bool(seen.query(f"({changed}) or ({came})"))


def test_every_rule_could_be_evaluated(seen: Prometheus) -> None:
    found = seen.rules()
    assert len(found) == sum(len(group["rules"]) for group in groups())
    assert {rule["health"] for rule in found} == {"ok"}, [rule for rule in found if rule["health"] != "ok"]


def test_the_ratios_are_those_of_the_load(seen: Prometheus) -> None:
    """Of the engine 4 errors beside some 40 other requests, of the gateway 20 beside 30."""
    (engine,) = seen.query('last_over_time(triton_chat:engine_errors:ratio_rate1h{model="chat"}[1h])')
    assert 0.05 < value(engine) < 0.15
    (gateway,) = seen.query("last_over_time(triton_chat:gateway_errors:ratio_rate1h[1h])")
    assert 0.2 < value(gateway) < 0.8


def test_the_alerts_of_the_load_were_pending_and_no_others(seen: Prometheus) -> None:
    """A busy machine may be slow. TritonChatAbsent is pending until the first scrape, too."""
    ever = {series["metric"]["alertname"] for series in seen.query("last_over_time(ALERTS[1h])")}
    due = {"TritonChatQueueTimeouts", "TritonChatGatewayRefusing", "TritonChatEngineErrors", "TritonChatGatewayErrors"}
    due |= {"TritonChatDown", "TritonChatAbsent", "TritonChatTargetDown"}
    slow = {"TritonChatFirstTokenSlow", "TritonChatOutputTokensSlow", "TritonChatPreempting"}
    assert due <= ever <= due | slow


def test_the_labels_are_those_of_the_rules(seen: Prometheus) -> None:
    (up,) = seen.query('up{container="triton"}')
    wanted = {"namespace": NAMESPACE, "release": RELEASE, "track": "stable", "pod": TRITON_POD}
    assert wanted.items() <= up["metric"].items()


def value(series: Series) -> float:
    return float(series["value"][1])
