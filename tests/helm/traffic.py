"""Which traffic a set of NetworkPolicies lets through, one direction at a time, as Kubernetes defines it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.helm.objects import Labels, Object, Pod, selects

Direction = Literal["Ingress", "Egress"]
_PEERS = {"Ingress": "from", "Egress": "to"}


@dataclass(frozen=True)
class Peer:
    """Who is at the other end: a pod with its labels and those of its namespace, or an address outside."""

    labels: Labels = field(default_factory=dict)
    namespace: str = ""
    address: str = ""
    ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def namespace_labels(self) -> Labels:
        return {"kubernetes.io/metadata.name": self.namespace}


@dataclass(frozen=True)
class Traffic:
    """The policies of one namespace."""

    policies: Sequence[Object]
    namespace: str

    def reaches(self, pod: Pod, peer: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether `peer` may open a connection to a port of `pod`."""
        return self._allowed("Ingress", pod, peer, port, protocol)

    def may_open(self, pod: Pod, peer: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether `pod` may open a connection to a port of `peer`."""
        return self._allowed("Egress", pod, peer, port, protocol)

    def peer(self, pod: Pod) -> Peer:
        return Peer(pod.labels, self.namespace, ports=_ports(pod))

    def _allowed(self, direction: Direction, pod: Pod, peer: Peer, port: int, protocol: str) -> bool:
        """No policy for the pod: everything is allowed. Otherwise what any rule of any of its policies allows."""
        policies = [one["spec"] for one in self.policies if self._is_for(one["spec"], direction, pod)]
        ports = _ports(pod) if direction == "Ingress" else peer.ports
        return not policies or any(
            self._matches(rule.get(_PEERS[direction]), peer) and _has_port(rule.get("ports"), port, protocol, ports)
            for policy in policies
            for rule in policy.get(direction.lower(), [])
        )

    def _is_for(self, policy: Mapping[str, Any], direction: Direction, pod: Pod) -> bool:
        kinds = policy.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in policy else [])]
        return direction in kinds and selects(policy["podSelector"], pod.labels)

    def _matches(self, peers: Sequence[Mapping[str, Any]] | None, peer: Peer) -> bool:
        return not peers or any(self._is(one, peer) for one in peers)

    def _is(self, rule: Mapping[str, Any], peer: Peer) -> bool:
        if "ipBlock" in rule:
            return bool(peer.address) and _in_block(rule["ipBlock"], peer.address)
        if peer.address:
            return False
        if "namespaceSelector" in rule:
            at_home = selects(rule["namespaceSelector"], peer.namespace_labels)
        else:
            at_home = peer.namespace == self.namespace
        return at_home and selects(rule.get("podSelector", {}), peer.labels)


def _in_block(block: Mapping[str, Any], address: str) -> bool:
    inside = ipaddress.ip_address(address)
    return inside in ipaddress.ip_network(block["cidr"]) and not any(
        inside in ipaddress.ip_network(part) for part in block.get("except", [])
    )


def _has_port(rules: Sequence[Mapping[str, Any]] | None, port: int, protocol: str, names: Mapping[str, int]) -> bool:
    return not rules or any(rule.get("protocol", "TCP") == protocol and _is_port(rule, port, names) for rule in rules)


def _is_port(rule: Mapping[str, Any], port: int, names: Mapping[str, int]) -> bool:
    wanted = rule.get("port")
    if wanted is None:
        return True
    first = names.get(wanted, -1) if isinstance(wanted, str) else wanted
    return bool(first <= port <= rule.get("endPort", first))


def _ports(pod: Pod) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in pod.containers
        for port in container.get("ports", [])
        if "name" in port
    }
