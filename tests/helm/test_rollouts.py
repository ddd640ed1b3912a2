"""When pods are replaced, and how."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.cases import Case, effective
from tests.helm.engines import Helm4
from tests.helm.objects import Objects, flags

CANARY = {
    "canary": {"enabled": True, "weight": 10},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
}


def template(objects: Objects, component: str, track: str = "stable") -> Any:
    pod = objects.pod(component, track)
    return pod.metadata, pod.spec


def checksum(objects: Objects, track: str = "stable") -> str:
    return objects.pod("triton", track).annotations["checksum/config"]


def test_no_gpu_is_needed_beyond_those_that_serve(case: Case, rendered: Objects):
    for deployment in rendered.of("Deployment"):
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "triton":
            assert deployment["spec"]["strategy"] == {
                "type": "RollingUpdate",
                "rollingUpdate": effective(case)["triton"]["strategy"],
            }


def test_a_rollout_waits_until_clients_know_the_new_pod(helm4: Helm4):
    """gRPC ends a connection up to a tenth later than told, and the new pod's name must be there by then."""
    for track in ("stable", "canary"):
        objects = helm4.render(CANARY)
        age = int(flags(objects.pod("triton", track).container("triton"))["--grpc-max-connection-age"]) / 1000
        assert objects.pod("triton", track).owner["spec"]["minReadySeconds"] >= 1.1 * age + 3


@pytest.mark.parametrize("seconds", [0, 3600])
def test_the_deadline_of_a_rollout_is_longer_than_a_pod_must_be_ready(seconds: int, helm4: Helm4):
    """Kubernetes refuses it otherwise."""
    spec = helm4.render({"triton": {"minReadySeconds": seconds, "loadSeconds": 1}}).pod("triton").owner["spec"]
    assert spec["minReadySeconds"] == seconds
    assert spec["progressDeadlineSeconds"] > seconds


def test_by_default_nothing_surges(helm4: Helm4):
    (triton,) = [one for one in helm4.render({}).of("Deployment") if one["metadata"]["name"].endswith("-triton")]
    assert triton["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"engine": {"max_sequences": 8}},
        {"model": {"hub": {"revision": "a" * 40}}},
        {"embeddings": {"config": {"pooling": "mean"}}},
        {"extraModels": [{"name": "small", "model": {"source": "embedded"}}]},
        {"drainSeconds": 90},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_engine_config_replaces_the_pods(changed: dict[str, Any], helm4: Helm4):
    assert checksum(helm4.render(changed)) != checksum(helm4.render({}))


@pytest.mark.parametrize(
    "unrelated",
    [
        {"gateway": {"settings": {"REQUEST_TIMEOUT": 900}}},
        {"ui": {"enabled": True}},
        {"monitoring": {"scrape": "serviceMonitor", "rules": {"enabled": True}}},
        {"networkPolicy": {"enabled": False}},
        {"triton": {"autoscaling": {"type": "hpa"}}},
        {"ingress": {"enabled": True}},
        CANARY,
    ],
    ids=lambda values: next(iter(values)),
)
def test_nothing_else_replaces_the_pods(unrelated: dict[str, Any], helm4: Helm4):
    assert template(helm4.render(unrelated), "triton") == template(helm4.render({}), "triton")


def test_a_canary_changes_by_itself(helm4: Helm4):
    before = helm4.render(CANARY)
    after = helm4.render(CANARY | {"canary": {"enabled": True, "weight": 10, "engine": {"max_sequences": 8}}})
    assert checksum(after, "canary") != checksum(before, "canary")
    for component in ("triton", "gateway"):
        assert template(after, component) == template(before, component)


def test_a_weight_replaces_no_pods(helm4: Helm4):
    heavier = CANARY | {"canary": {"enabled": True, "weight": 50}}
    for component in ("triton", "gateway"):
        for track in ("stable", "canary"):
            assert template(helm4.render(heavier), component, track) == template(helm4.render(CANARY), component, track)


def test_changed_gateway_settings_replace_the_gateways(helm4: Helm4):
    changed = helm4.render({"gateway": {"settings": {"REQUEST_TIMEOUT": 900}}})
    assert template(changed, "gateway") != template(helm4.render({}), "gateway")
