"""The checks of objects find what they are for."""

from __future__ import annotations

import pytest

from tests.helm.cases import NEWEST, OLDEST
from tests.helm.schemas import SchemaChecks, custom_problems


def a_service(**spec: object) -> dict[str, object]:
    ports = {"ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": ports | spec}


def a_monitor(**endpoint: object) -> dict[str, object]:
    spec = {"selector": {"matchLabels": {"a": "b"}}, "endpoints": [{"port": "metrics"} | endpoint]}
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {"name": "x"}, "spec": spec}


@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_a_good_object_passes(kubernetes):
    assert SchemaChecks().problems([a_service()], kubernetes) == []


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (a_service(selektor={}), "'selektor' was unexpected"),
        (a_service(ports=[{"port": "http"}]), "spec.ports.0.port: 'http' is not of type 'integer'"),
        ({"apiVersion": "v1", "kind": "Servize", "metadata": {"name": "x"}}, "no kind v1 Servize"),
        ({"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": "x"}}, "no kind policy/v1beta1"),
    ],
)
def test_a_bad_object_is_found(wrong, problem):
    (found,) = SchemaChecks().problems([wrong], NEWEST)
    assert problem in found


def test_a_good_custom_resource_passes():
    assert custom_problems([a_monitor(interval="15s")]) == []


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [({"intervall": "15s"}, "'\"intervall\"' does not exist"), ({"interval": "soon"}, "must match pattern")],
)
def test_a_bad_custom_resource_is_found(endpoint, problem):
    assert any(problem in line for line in custom_problems([a_monitor(), a_monitor(**endpoint)]))
