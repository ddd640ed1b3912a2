"""How objects name, select and refer to each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.cases import ADD_ONS, Case, effective
from tests.helm.engines import NAMESPACE, RELEASE, Helm4
from tests.helm.objects import Object, Objects, Pod, found, label, name, selects, strings

STANDARD_LABELS = {
    "app.kubernetes.io/name": "triton-chat",
    "app.kubernetes.io/instance": RELEASE,
    "app.kubernetes.io/managed-by": "Helm",
}
NEVER_IN_SELECTORS = {"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}


@pytest.fixture
def own(case: Case, helm4: Helm4) -> Objects:
    """The chart's own objects, without those of extraObjects."""
    return helm4.render(case.values | {"extraObjects": []}, apis=ADD_ONS)


# --- Labels -----------------------------------------------------------------------------------------------------------


def test_every_object_has_the_standard_labels(case: Case, own: Objects):
    wanted = STANDARD_LABELS | effective(case)["commonLabels"]
    if effective(case)["nameOverride"]:
        wanted["app.kubernetes.io/name"] = effective(case)["nameOverride"]
    for one in own:
        labels = one["metadata"].get("labels", {})
        assert wanted.items() <= labels.items(), label(one)
        assert labels.get("helm.sh/chart", "").startswith("triton-chat-"), label(one)
        assert labels.get("app.kubernetes.io/version"), label(one)


def test_the_labels_of_pods_name_no_version(own: Objects):
    """A new version of the chart alone is no reason to replace a pod."""
    for pod in own.pods:
        if not pod.is_test:
            assert not NEVER_IN_SELECTORS & pod.labels.keys(), pod.name
            assert pod.labels["app.kubernetes.io/instance"] == RELEASE
            assert pod.component in ("triton", "triton-worker", "gateway", "ui")


def test_objects_are_in_the_namespace_of_the_release(own: Objects):
    assert {one["metadata"].get("namespace", NAMESPACE) for one in own} == {NAMESPACE}


def test_selectors_hold_only_what_never_changes(own: Objects, case: Case, helm4: Helm4):
    """A Deployment's selector cannot change, so an upgrade must not want it to."""
    relabelled = helm4.render(case.values | {"extraObjects": [], "commonLabels": {"later": "added"}}, apis=ADD_ONS)
    for before, after in zip(own.of("Deployment"), relabelled.of("Deployment"), strict=True):
        selector = before["spec"]["selector"]
        assert selector == after["spec"]["selector"], label(before)
        assert not NEVER_IN_SELECTORS & selector["matchLabels"].keys(), label(before)


def test_pods_match_the_selector_of_their_deployment_alone(own: Objects):
    for deployment in own.of("Deployment"):
        matched = [pod.name for pod in own.pods if selects(deployment["spec"]["selector"], pod.labels)]
        assert matched == [label(deployment)]


# --- Services, budgets, autoscalers, monitors -------------------------------------------------------------------------


def test_services_lead_to_the_pods_meant(own: Objects):
    """Those of one component and one track, never a test's, and by ports that they have."""
    for service in own.of("Service"):
        pods = [pod for pod in own.pods if selects(service["spec"]["selector"], pod.labels)]
        labels = service["metadata"]["labels"]
        (pod,) = pods
        assert pod.component == labels["app.kubernetes.io/component"], label(service)
        assert pod.track == labels.get("triton-chat/track", ""), label(service)
        assert not pod.is_test
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in container_ports(pod), label(service)


def test_the_gateway_of_a_track_speaks_to_the_triton_of_that_track(own: Objects):
    services = {name(one) for one in own.of("Service")}
    for pod in own.pods_of("gateway"):
        (url,) = [
            one["value"] for one in pod.container("gateway")["env"] if one["name"] == "TRITON_CHAT_GATEWAY_TRITON_URL"
        ]
        host = url.split("://")[1].split(":")[0].split(".")[0]
        assert host in services
        service = own.one("Service", host)
        assert service["spec"]["selector"]["triton-chat/track"] == pod.track
        assert int(url.rsplit(":", 1)[1]) in [port["port"] for port in service["spec"]["ports"]]


def test_a_disruption_budget_covers_the_pods_of_one_workload(own: Objects):
    """All of a LeaderWorkerSet's, since a group does not serve without each of its pods."""
    for budget in own.of("PodDisruptionBudget"):
        owners = [label(pod.owner) for pod in own.pods if selects(budget["spec"]["selector"], pod.labels)]
        assert owners == [label(pod.owner) for pod in own.pods if label(pod.owner) in owners], label(budget)
        assert len(set(owners)) == 1, label(budget)


def test_autoscalers_have_a_target_each(own: Objects):
    targets = [
        (one["spec"]["scaleTargetRef"]["kind"], one["spec"]["scaleTargetRef"]["name"])
        for one in own.of("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(set(targets)) == len(targets), "two autoscalers for one workload"
    assert set(targets) <= {(one["kind"], name(one)) for one in own.of("Deployment", "LeaderWorkerSet")}


def test_no_replicas_where_an_autoscaler_decides(own: Objects):
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in own.of("HorizontalPodAutoscaler", "ScaledObject")}
    for deployment in own.of("Deployment", "LeaderWorkerSet"):
        assert ("replicas" in deployment["spec"]) == (name(deployment) not in scaled), label(deployment)


@pytest.mark.parametrize("kind", ["hpa", "keda", "none"])
def test_one_kind_of_autoscaling_at_a_time(kind: str, helm4: Helm4):
    asked = {"type": kind, "prometheusAddress": "http://prometheus:9090"}
    objects = helm4.render({"triton": {"autoscaling": asked}}, apis=ADD_ONS)
    assert len(objects.of("HorizontalPodAutoscaler")) == (kind == "hpa")
    assert len(objects.of("ScaledObject")) == (kind == "keda")


def test_a_monitor_scrapes_every_pod_of_its_component_once(own: Objects):
    for monitor in own.of("ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        services = [
            one
            for one in own.of("Service")
            if selects(monitor["spec"]["selector"], one["metadata"]["labels"])
            and endpoint["port"] in [port["name"] for port in one["spec"]["ports"]]
        ]
        scraped = [pod.name for one in services for pod in own.pods if selects(one["spec"]["selector"], pod.labels)]
        assert scraped, label(monitor)
        assert len(set(scraped)) == len(scraped), label(monitor)
        assert sorted(scraped) == expected_of(own, scraped[0])
    for monitor in own.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        pods = [pod for pod in own.pods if selects(monitor["spec"]["selector"], pod.labels)]
        assert sorted(pod.name for pod in pods) == expected_of(own, pods[0].name)
        assert all(endpoint["port"] in container_ports(pod) for pod in pods)


def test_scraped_series_carry_the_release(own: Objects):
    for monitor in own.of("ServiceMonitor", "PodMonitor"):
        for endpoint in [*monitor["spec"].get("endpoints", []), *monitor["spec"].get("podMetricsEndpoints", [])]:
            assert {"targetLabel": "release", "replacement": RELEASE} in endpoint["relabelings"], label(monitor)


def expected_of(objects: Objects, pod_name: str) -> list[str]:
    component = next(pod.component for pod in objects.pods if pod.name == pod_name)
    return sorted(pod.name for pod in objects.pods_of(component))


def container_ports(pod: Pod) -> set[str]:
    return {port["name"] for container in pod.containers for port in container.get("ports", [])}


# --- References -------------------------------------------------------------------------------------------------------


def references(one: Object) -> Iterator[tuple[str, Any]]:
    """(kind, name) of all that an object's pods and rules name."""
    keys = {
        "configMapKeyRef": "ConfigMap",
        "configMapRef": "ConfigMap",
        "configMap": "ConfigMap",
        "secretKeyRef": "Secret",
        "secretRef": "Secret",
        "credentials": "Secret",
    }
    for key, kind in keys.items():
        yield from ((kind, source["name"]) for source in found(one, key))
    yield from (("Secret", secret) for secret in found(one, "secretName"))
    yield from (("Secret", pull["name"]) for pulls in found(one, "imagePullSecrets") for pull in pulls)
    yield from (("PersistentVolumeClaim", claim) for claim in found(one, "claimName"))
    yield from (("ServiceAccount", account) for account in found(one, "serviceAccountName"))


def test_what_is_referred_to_is_made_or_named_in_the_values(case: Case, own: Objects):
    in_values = set(strings(effective(case))) | {"default"}
    for one in own:
        for kind, target in references(one):
            assert target in own.names(kind) or target in in_values, f"{label(one)} names {kind} {target}"


def test_mounts_have_volumes_and_volumes_are_mounted(own: Objects):
    for pod in own.pods:
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
        assert volumes == mounted, pod.name
        for container in pod.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            assert len(set(paths)) == len(paths), f"{pod.name}: {container['name']}"


def test_files_taken_out_of_config_maps_exist(own: Objects):
    for pod in own.pods:
        for source in found(pod.spec.get("volumes", []), "configMap"):
            if source["name"] in own.names("ConfigMap"):
                data = own.one("ConfigMap", source["name"])["data"]
                assert {item["key"] for item in source.get("items", [])} <= data.keys(), pod.name


def test_routes_and_ingresses_lead_to_ports_of_services(own: Objects):
    services = {name(one): one["spec"]["ports"] for one in own.of("Service")}
    for route in own.of("HTTPRoute", "GRPCRoute"):
        for backends in found(route, "backendRefs"):
            for backend in backends:
                assert backend["port"] in [port["port"] for port in services[backend["name"]]], label(route)
    for ingress in own.of("Ingress"):
        for service in found(ingress, "service"):
            assert service["port"]["name"] in [port["name"] for port in services[service["name"]]], label(ingress)


def test_the_notes_name_what_is_there(case: Case, helm4: Helm4):
    (notes,) = [text for path, text in helm4.texts(case.values, apis=ADD_ONS).items() if path.endswith("NOTES.txt")]
    objects = helm4.render(case.values, apis=ADD_ONS)
    kinds = {"deployment": "Deployment", "service": "Service", "leaderworkerset": "LeaderWorkerSet"}
    named = re.findall(rf"({'|'.join(kinds)})/(\S+)(?: -c (\S+))?", notes)
    assert named
    for kind, target, container in named:
        assert target in objects.names(kinds[kind]), f"{kind}/{target}"
        if container:
            (pod,) = [pod for pod in objects.pods if name(pod.owner) == target]
            assert container in [one["name"] for one in pod.containers]


def test_extra_objects_are_templates_and_go_along(helm4: Helm4):
    extra = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "{{ .Release.Name }}-extra"},
        "data": {"namespace": "{{ .Release.Namespace }}"},
    }
    made = helm4.render({"extraObjects": [extra]}).one("ConfigMap", "demo-extra")
    assert made["data"] == {"namespace": NAMESPACE}
