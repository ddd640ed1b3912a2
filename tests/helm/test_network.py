"""Who reaches whom by the NetworkPolicies, seen by a model of them (`traffic.py`)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.helm.cases import Case, ci_cases, effective
from tests.helm.engines import NAMESPACE, Helm4
from tests.helm.objects import Objects, Pod, found, label, name, strings
from tests.helm.traffic import Peer, Traffic

HTTP, GRPC, METRICS = TRITON_PORTS = (8000, 8001, 8002)
GATEWAY_PORT, UI_PORT = 9000, 8501
STRANGER = Peer({"app": "anything"}, NAMESPACE)
PROMETHEUS = Peer({"app": "prometheus"}, "monitoring")
RESOLVER = Peer({"k8s-app": "kube-dns"}, "kube-system")
INTERNET = Peer(address="93.184.215.14")
METADATA_SERVICE = Peer(address="169.254.169.254")
INTERNET_6 = Peer(address="2606:2800:220:1:248:1893:25c8:1946")
METADATA_SERVICES_6 = [
    Peer(address=address) for address in ("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe", "64:ff9b::a9fe:a9fe")
]

WITH_POLICIES = [case for case in ci_cases() if effective(case)["networkPolicy"]["enabled"]]
PLAIN = [case for case in WITH_POLICIES if "networkPolicy" not in case.values]
"""Those files that leave the policies as they are by default."""

on_all = pytest.mark.parametrize("policed", WITH_POLICIES, ids=str)
on_plain = pytest.mark.parametrize("policed", PLAIN, ids=str)


def traffic(objects: Objects) -> Traffic:
    return Traffic(objects.of("NetworkPolicy"), NAMESPACE)


def by_component(objects: Objects, component: str) -> list[Pod]:
    return objects.pods_of(component)


def has_downloads(pod: Pod) -> bool:
    return any(one["name"].startswith("fetch-") for one in pod.spec.get("initContainers", []))


@on_all
def test_every_pod_that_serves_has_a_policy_both_ways(policed: Case, helm4: Helm4):
    objects = helm4.render(policed.values)
    for pod in objects.pods:
        if pod.component and not pod.is_test:
            assert not traffic(objects).may_open(pod, STRANGER, 1234), pod.name
            assert not traffic(objects).reaches(pod, STRANGER, 1234), pod.name


@on_plain
def test_triton_is_reached_by_the_gateway_the_tests_and_the_monitoring_alone(policed: Case, helm4: Helm4):
    objects = helm4.render(policed.values)
    rules = traffic(objects)
    for triton in by_component(objects, "triton"):
        for port in TRITON_PORTS:
            assert not rules.reaches(triton, STRANGER, port), triton.name
            assert not rules.reaches(triton, INTERNET, port), triton.name
            assert not any(rules.reaches(triton, rules.peer(ui), port) for ui in by_component(objects, "ui"))
        friends = [*by_component(objects, "gateway"), *(pod for pod in objects.pods if pod.is_test)]
        assert all(rules.reaches(triton, rules.peer(pod), GRPC) for pod in friends), triton.name
        assert rules.reaches(triton, PROMETHEUS, METRICS), triton.name
        assert not rules.reaches(triton, PROMETHEUS, HTTP), triton.name
        assert not rules.reaches(triton, PROMETHEUS, GRPC), triton.name


@on_plain
def test_triton_reaches_a_resolver_and_the_source_of_its_model_alone(policed: Case, helm4: Helm4):
    objects = helm4.render(policed.values)
    rules = traffic(objects)
    downloads = any(has_downloads(pod) for pod in by_component(objects, "triton"))
    for triton in by_component(objects, "triton"):
        assert all(rules.may_open(triton, RESOLVER, 53, protocol) for protocol in ("UDP", "TCP")), triton.name
        assert rules.may_open(triton, INTERNET, 443) == downloads, triton.name
        assert not rules.may_open(triton, INTERNET, 80), triton.name
        assert not rules.may_open(triton, METADATA_SERVICE, 443), triton.name
        assert not rules.may_open(triton, STRANGER, GRPC), triton.name


@on_plain
def test_the_gateway_is_open_and_reaches_triton_alone(policed: Case, helm4: Helm4):
    objects = helm4.render(policed.values)
    rules = traffic(objects)
    for gateway in by_component(objects, "gateway"):
        assert rules.reaches(gateway, STRANGER, GATEWAY_PORT)
        assert rules.reaches(gateway, INTERNET, GATEWAY_PORT)
        tritons = by_component(objects, "triton")
        assert all(rules.may_open(gateway, rules.peer(triton), GRPC) for triton in tritons)
        assert not any(rules.may_open(gateway, rules.peer(triton), HTTP) for triton in tritons)
        assert not rules.may_open(gateway, INTERNET, 443)
        assert rules.may_open(gateway, RESOLVER, 53, "UDP")


@on_plain
def test_the_page_reaches_the_gateway_alone(policed: Case, helm4: Helm4):
    objects = helm4.render(policed.values)
    rules = traffic(objects)
    for ui in by_component(objects, "ui"):
        assert rules.reaches(ui, STRANGER, UI_PORT)
        for gateway in by_component(objects, "gateway"):
            assert rules.may_open(ui, rules.peer(gateway), GATEWAY_PORT)
            assert rules.reaches(gateway, rules.peer(ui), GATEWAY_PORT)
        assert not any(rules.may_open(ui, rules.peer(triton), GRPC) for triton in by_component(objects, "triton"))
        assert not rules.may_open(ui, INTERNET, 443)


def test_named_clients_reach_triton_and_others_do_not(helm4: Helm4):
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "batch"}},
        "podSelector": {"matchLabels": {"app": "worker"}},
    }
    objects = helm4.render({"networkPolicy": {"tritonClients": [peer]}})
    triton = objects.pod("triton")
    for port in (HTTP, GRPC):
        assert traffic(objects).reaches(triton, Peer({"app": "worker"}, "batch"), port)
        assert not traffic(objects).reaches(triton, Peer({"app": "other"}, "batch"), port)


def test_with_named_clients_the_gateway_is_closed_to_others(helm4: Helm4):
    clients = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "web"}}}]
    objects = helm4.render({"networkPolicy": {"gatewayClients": clients}, "ui": {"enabled": True}})
    rules = traffic(objects)
    gateway, ui = objects.pod("gateway"), objects.pod("ui", "")
    friends = [Peer({}, "web"), rules.peer(ui), PROMETHEUS, *(rules.peer(pod) for pod in objects.pods if pod.is_test)]
    assert all(rules.reaches(gateway, friend, GATEWAY_PORT) for friend in friends)
    assert not rules.reaches(gateway, STRANGER, GATEWAY_PORT)
    assert rules.reaches(ui, Peer({}, "web"), UI_PORT)
    assert not rules.reaches(ui, STRANGER, UI_PORT)


def test_the_source_of_the_model_can_be_narrowed(helm4: Helm4):
    objects = helm4.render({"networkPolicy": {"modelSource": {"cidrs": ["10.1.0.0/16"], "ports": [9000]}}})
    rules, triton = traffic(objects), objects.pod("triton")
    assert rules.may_open(triton, Peer(address="10.1.2.3"), 9000)
    assert not rules.may_open(triton, Peer(address="10.1.2.3"), 443)
    assert not rules.may_open(triton, INTERNET, 443)


def test_the_metadata_service_is_not_part_of_everything(helm4: Helm4):
    objects = helm4.render({"networkPolicy": {"modelSource": {"cidrs": ["0.0.0.0/0"], "ports": [80, 443]}}})
    assert not traffic(objects).may_open(objects.pod("triton"), METADATA_SERVICE, 80)


def test_a_model_comes_over_either_family(helm4: Helm4):
    objects = helm4.render({})
    rules, triton = traffic(objects), objects.pod("triton")
    assert rules.may_open(triton, INTERNET, 443)
    assert rules.may_open(triton, INTERNET_6, 443)
    for service in (METADATA_SERVICE, *METADATA_SERVICES_6):
        assert not rules.may_open(triton, service, 443), service


def test_further_destinations_go_to_all_servers(helm4: Helm4):
    rule: Any = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 4318}]}
    objects = helm4.render({"networkPolicy": {"extraEgress": [rule]}})
    for component in ("triton", "gateway"):
        assert traffic(objects).may_open(objects.pod(component), Peer(address="10.9.1.1"), 4318), component


def test_policies_can_be_left_out(helm4: Helm4):
    assert helm4.render({"networkPolicy": {"enabled": False}}).of("NetworkPolicy") == []


def test_policies_select_pods_that_exist(rendered: Objects):
    for policy in rendered.of("NetworkPolicy"):
        for selector in found(policy["spec"], "podSelector"):
            labels = selector["matchLabels"]
            if labels.get("app.kubernetes.io/instance"):
                assert any(labels.items() <= pod.labels.items() for pod in rendered.pods), f"{name(policy)}: {labels}"


# --- A cluster with IPv6 alone ----------------------------------------------------------------------------------------

IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")


def test_no_object_names_an_ipv4_address_that_the_values_do_not(case: Case, rendered: Objects):
    """But a policy, which allows IPv6 beside it."""
    given = IPV4.findall("\n".join(strings(case.values)))
    for one in rendered:
        if one["kind"] not in ("NetworkPolicy", "ConfigMap", "PrometheusRule"):
            assert set(IPV4.findall("\n".join(strings(one)))) <= set(given), label(one)


def test_what_a_policy_opens_for_ipv4_it_opens_for_ipv6(helm4: Helm4):
    for policy in helm4.render({}).of("NetworkPolicy"):
        cidrs = [block["cidr"] for block in found(policy["spec"], "ipBlock")]
        assert ("0.0.0.0/0" in cidrs) == ("::/0" in cidrs), name(policy)


def test_the_doors_and_the_resolver_are_reached_over_ipv6(helm4: Helm4):
    objects = helm4.render({"ui": {"enabled": True}})
    rules = traffic(objects)
    assert rules.reaches(objects.pod("gateway"), INTERNET_6, GATEWAY_PORT)
    assert rules.reaches(objects.pod("ui", ""), INTERNET_6, UI_PORT)
    for pod in objects.pods:
        assert rules.may_open(pod, Peer(address="fd00:10:96::a"), 53, "UDP"), pod.name


def test_services_have_the_family_of_the_cluster(rendered: Objects):
    """That is the pods' first one, on which alone tritonserver's HTTP listens: a second family would lead nowhere."""
    for service in rendered.of("Service"):
        assert not {"ipFamilies", "ipFamilyPolicy", "clusterIPs"} & service["spec"].keys(), label(service)
        assert service["spec"].get("clusterIP", "None") == "None", label(service)


def test_probes_ask_the_pod_whatever_its_address(rendered: Objects):
    for pod in rendered.pods:
        for container in pod.containers:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert "host" not in container.get(probe, {}).get("httpGet", {}), pod.name
                command = container.get(probe, {}).get("exec", {}).get("command", [])
                assert not any("://" in word for word in command), "the command finds its own loopback address"


def test_addresses_of_ipv6_can_be_given(helm4: Helm4):
    objects = helm4.render(
        {
            "model": {"source": "s3", "s3": {"uri": "s3://b/p", "endpoint": "https://[fd00::5]:9000"}},
            "triton": {"autoscaling": {"type": "keda", "prometheusAddress": "http://[fd00::9]:9090"}},
            "networkPolicy": {"modelSource": {"cidrs": ["fd00::/8"], "ports": [9000]}},
            "gateway": {"settings": {"OTLP_ENDPOINT": "http://[fd00::7]:4318"}},
        }
    )
    rules, triton = traffic(objects), objects.pod("triton")
    assert rules.may_open(triton, Peer(address="fd00::5"), 9000)
    assert not rules.may_open(triton, INTERNET, 9000)
    assert "--endpoint=https://[fd00::5]:9000" in list(strings(triton.spec))
