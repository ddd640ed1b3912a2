"""What leads in from outside, and how a canary gets its part."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.cases import ADD_ONS
from tests.helm.engines import Helm4
from tests.helm.objects import Objects, found, name

PARENTS = [{"name": "public", "namespace": "gateways"}]
ROUTES = {
    "httpRoute": {"enabled": True, "parentRefs": PARENTS, "hostnames": ["api.example.com"]},
    "grpcRoute": {"enabled": True, "parentRefs": PARENTS, "hostnames": ["grpc.example.com"]},
    "networkPolicy": {"tritonClients": [{"namespaceSelector": {}}]},
}


def weights(objects: Objects, kind: str) -> dict[str, int | None]:
    (route,) = objects.of(kind)
    (backends,) = found(route, "backendRefs")
    return {one["name"]: one.get("weight") for one in backends}


@pytest.mark.parametrize(("kind", "server"), [("HTTPRoute", "gateway"), ("GRPCRoute", "triton")])
@pytest.mark.parametrize("weight", [0, 1, 10, 99, 100])
def test_a_canary_gets_its_percent(kind: str, server: str, weight: int, helm4: Helm4):
    objects = helm4.render(ROUTES | {"canary": {"enabled": True, "weight": weight}}, apis=ADD_ONS)
    shares = weights(objects, kind)
    assert shares == {f"demo-triton-chat-{server}": 100 - weight, f"demo-triton-chat-{server}-canary": weight}


@pytest.mark.parametrize("kind", ["HTTPRoute", "GRPCRoute"])
def test_without_a_canary_there_is_one_backend(kind: str, helm4: Helm4):
    assert len(weights(helm4.render(ROUTES, apis=ADD_ONS), kind)) == 1


@pytest.mark.parametrize(("kind", "host"), [("HTTPRoute", "api.example.com"), ("GRPCRoute", "grpc.example.com")])
def test_a_route_belongs_to_its_gateway_and_host(kind: str, host: str, helm4: Helm4):
    (route,) = helm4.render(ROUTES, apis=ADD_ONS).of(kind)
    assert route["spec"]["parentRefs"] == PARENTS
    assert route["spec"]["hostnames"] == [host]


def test_routes_by_the_canarys_weight_cover_every_file(rendered: Objects):
    for route in rendered.of("HTTPRoute", "GRPCRoute"):
        for backends in found(route, "backendRefs"):
            if len(backends) > 1:
                assert sum(one["weight"] for one in backends) == 100, name(route)


def test_a_canary_is_a_triton_and_a_gateway_of_its_own(helm4: Helm4):
    canary: dict[str, Any] = {
        "enabled": True,
        "weight": 10,
        "replicas": 2,
        "image": {"tag": "next"},
        "engine": {"max_sequences": 8},
    }
    objects = helm4.render(ROUTES | {"canary": canary, "engine": {"prefix_caching": False}}, apis=ADD_ONS)
    triton = objects.pod("triton", "canary")
    assert triton.owner["spec"]["replicas"] == 2
    assert triton.container("triton")["image"].endswith("triton-chat:next")
    assert not objects.pod("triton").container("triton")["image"].endswith(":next")
    assert objects.pod("gateway", "canary").component == "gateway"


def test_an_ingress_leads_to_the_gateway_and_the_page(helm4: Helm4):
    asked = {"enabled": True, "className": "nginx", "host": "api.example.com", "uiHost": "chat.example.com"}
    asked |= {"tlsSecret": "web-tls", "annotations": {"a/b": "c"}}
    (ingress,) = helm4.render({"ingress": asked, "ui": {"enabled": True}}).of("Ingress")
    rules = {rule["host"]: rule["http"]["paths"][0]["backend"]["service"]["name"] for rule in ingress["spec"]["rules"]}
    assert rules == {"api.example.com": "demo-triton-chat-gateway", "chat.example.com": "demo-triton-chat-ui"}
    assert ingress["spec"]["tls"] == [{"secretName": "web-tls", "hosts": ["api.example.com", "chat.example.com"]}]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["metadata"]["annotations"]["a/b"] == "c"


def test_by_default_nothing_leads_in_from_outside(helm4: Helm4):
    objects = helm4.render({}, apis=ADD_ONS)
    assert objects.of("Ingress", "HTTPRoute", "GRPCRoute") == []
    assert {one["spec"]["type"] for one in objects.of("Service")} == {"ClusterIP"}
