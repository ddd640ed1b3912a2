"""The model of NetworkPolicies agrees with the examples of Kubernetes' documentation."""

from __future__ import annotations

import pytest

from tests.helm.objects import Pod
from tests.helm.traffic import Peer, Traffic

DB = Pod({}, {"labels": {"role": "db"}}, {"containers": [{"ports": [{"name": "sql", "containerPort": 6379}]}]})
FRONTEND = Peer({"role": "frontend"}, "default")
STRANGER = Peer({"role": "stranger"}, "default")


def traffic(**spec: object) -> Traffic:
    return Traffic([{"spec": {"podSelector": {"matchLabels": {"role": "db"}}, **spec}}], "default")


def test_a_pod_that_no_policy_selects_is_open():
    other = Pod({}, {"labels": {"role": "web"}}, {"containers": []})
    assert traffic(ingress=[]).reaches(other, STRANGER, 80)


def test_a_policy_without_rules_shuts_the_pod():
    assert not traffic(policyTypes=["Ingress"]).reaches(DB, FRONTEND, 6379)
    assert traffic(policyTypes=["Ingress"]).may_open(DB, FRONTEND, 6379)


def test_an_egress_rule_makes_an_egress_policy():
    assert not traffic(egress=[]).may_open(DB, FRONTEND, 80)


def test_a_rule_without_peers_is_for_everybody():
    assert traffic(ingress=[{"ports": [{"port": 6379}]}]).reaches(DB, STRANGER, 6379)
    assert not traffic(ingress=[{"ports": [{"port": 6379}]}]).reaches(DB, STRANGER, 6380)


@pytest.mark.parametrize(("port", "named"), [(6379, True), (6380, False)])
def test_ports_go_by_name_too(port, named):
    assert traffic(ingress=[{"ports": [{"port": "sql"}]}]).reaches(DB, STRANGER, port) == named


def test_a_port_by_name_is_that_of_the_pod_that_is_called():
    ruled = traffic(egress=[{"ports": [{"port": "web"}]}])
    assert ruled.may_open(DB, Peer({}, "default", ports={"web": 8080}), 8080)
    assert not ruled.may_open(DB, Peer({}, "default", ports={"web": 80}), 8080)


def test_port_ranges_and_protocols():
    ruled = traffic(ingress=[{"ports": [{"port": 100, "endPort": 200, "protocol": "UDP"}]}])
    assert ruled.reaches(DB, STRANGER, 150, "UDP")
    assert not ruled.reaches(DB, STRANGER, 150)
    assert not ruled.reaches(DB, STRANGER, 201, "UDP")


def test_a_pod_selector_alone_means_the_own_namespace():
    ruled = traffic(ingress=[{"from": [{"podSelector": {"matchLabels": {"role": "frontend"}}}]}])
    assert ruled.reaches(DB, FRONTEND, 1)
    assert not ruled.reaches(DB, STRANGER, 1)
    assert not ruled.reaches(DB, Peer({"role": "frontend"}, "elsewhere"), 1)


def test_both_selectors_in_one_peer_are_both_asked_for():
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}},
        "podSelector": {"matchExpressions": [{"key": "role", "operator": "In", "values": ["frontend"]}]},
    }
    ruled = traffic(ingress=[{"from": [peer]}])
    assert ruled.reaches(DB, Peer({"role": "frontend"}, "elsewhere"), 1)
    assert not ruled.reaches(DB, FRONTEND, 1)
    assert not ruled.reaches(DB, Peer({"role": "stranger"}, "elsewhere"), 1)


def test_address_blocks_are_for_addresses_and_have_exceptions():
    ruled = traffic(egress=[{"to": [{"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}}]}])
    assert ruled.may_open(DB, Peer(address="172.17.0.9"), 443)
    assert not ruled.may_open(DB, Peer(address="172.17.1.9"), 443)
    assert not ruled.may_open(DB, FRONTEND, 443)
