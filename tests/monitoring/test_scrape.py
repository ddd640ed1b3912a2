"""Who is scraped: each pod of Triton and of the gateway, once, on its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.objects import Object, Objects, Pod, label, selects
from tests.monitoring.chart import RELEASE, rendered

KINDS = {"serviceMonitor": "ServiceMonitor", "podMonitor": "PodMonitor"}
CANARY = {"canary": {"enabled": True, "weight": 0}, "ui": {"enabled": True}}


@pytest.fixture(params=KINDS)
def scrape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def monitors(scrape: str, values: dict[str, Any]) -> Objects:
    objects = rendered({**values, "monitoring": {"scrape": scrape}})
    assert objects.of(KINDS[scrape])
    assert not objects.of(*(kind for kind in KINDS.values() if kind != KINDS[scrape]))
    return objects


def test_each_pod_is_a_target_once(scrape: str) -> None:
    objects = monitors(scrape, CANARY)
    targets = [target for monitor in objects.of(KINDS[scrape]) for target in targets_of(monitor, objects)]
    assert sorted(targets) == [
        ("gateway", "canary", 9000, "/metrics"),
        ("gateway", "stable", 9000, "/metrics"),
        ("triton", "canary", 8002, "/metrics"),
        ("triton", "stable", 8002, "/metrics"),
    ]


def test_targets_get_the_labels_of_the_rules(scrape: str) -> None:
    for monitor in monitors(scrape, CANARY).of(KINDS[scrape]):
        (endpoint,) = endpoints(monitor)
        release, track = endpoint["relabelings"]
        assert release == {"targetLabel": "release", "replacement": RELEASE}, label(monitor)
        assert track == {"sourceLabels": ["__meta_kubernetes_pod_label_triton_chat_track"], "targetLabel": "track"}
        assert endpoint["interval"] == "15s"


def test_the_gateway_is_asked_with_its_key(scrape: str) -> None:
    keys = {"gateway": {"apiKeys": {"existingSecret": "keys", "metricsEntry": "prometheus"}}}
    for values, expected in (({}, None), (keys, {"credentials": {"name": "keys", "key": "prometheus"}})):
        objects = monitors(scrape, values)
        found = {monitor["metadata"]["name"]: endpoints(monitor)[0] for monitor in objects.of(KINDS[scrape])}
        assert found["demo-triton-chat-gateway"].get("authorization") == expected
        assert "authorization" not in found["demo-triton-chat-triton"]


def test_no_gateway_no_monitor(scrape: str) -> None:
    objects = monitors(scrape, {"gateway": {"enabled": False}})
    assert objects.names(KINDS[scrape]) == {"demo-triton-chat-triton"}


def test_prometheus_finds_all_by_the_labels_of_the_values(scrape: str) -> None:
    objects = rendered({"monitoring": {"scrape": scrape, "labels": {"release": "prometheus"}}})
    found = objects.of(KINDS[scrape], "PrometheusRule")
    assert len(found) == 3
    assert {one["metadata"]["labels"]["release"] for one in found} == {"prometheus"}


def endpoints(monitor: Object) -> list[Object]:
    return list(monitor["spec"]["podMetricsEndpoints" if monitor["kind"] == "PodMonitor" else "endpoints"])


def targets_of(monitor: Object, objects: Objects) -> Iterator[tuple[str, str, int, str]]:
    """Component, track, port and path, as Prometheus Operator finds them."""
    selector = monitor["spec"]["selector"]
    for endpoint in endpoints(monitor):
        if monitor["kind"] == "PodMonitor":
            found = [(pod, endpoint["port"]) for pod in objects.pods if selects(selector, pod.labels)]
        else:
            services = [one for one in objects.of("Service") if selects(selector, one["metadata"]["labels"])]
            found = [pair for service in services for pair in behind(service, endpoint["port"], objects)]
        for pod, port in found:
            yield pod.component, pod.track, number(pod, port), endpoint["path"]


def behind(service: Object, port: str, objects: Objects) -> Iterator[tuple[Pod, str]]:
    for offered in service["spec"]["ports"]:
        if offered["name"] == port:
            for pod in objects.pods:
                if selects(service["spec"]["selector"], pod.labels):
                    yield pod, offered["targetPort"]


def number(pod: Pod, port: str) -> int:
    (found,) = [one for container in pod.containers for one in container.get("ports", []) if one["name"] == port]
    return int(found["containerPort"])
