"""Every file of ci/ on every version of Kubernetes, with and without the add-ons' APIs, under both Helms."""

from __future__ import annotations

import json

import pytest

from tests.helm.cases import ADD_ONS, KUBERNETES, NEWEST, OLDEST, Case, ci_cases, defaults
from tests.helm.engines import Helm3, Helm4, refusal
from tests.helm.objects import Object, Objects, name
from tests.helm.schemas import SchemaChecks, custom_problems, is_custom

APIS = pytest.mark.parametrize("apis", [(), ADD_ONS], ids=["plain", "add-ons"])
LINTED_BY_HELM_3 = "1.28"
"""`helm lint` of 3.10 knows no --kube-version and takes a version older than any here."""


@pytest.fixture(scope="module")
def schemas() -> SchemaChecks:
    return SchemaChecks()


def by_identity(objects: Objects) -> dict[tuple[str, str], Object]:
    found = {(one["kind"], name(one)): one for one in objects}
    assert len(found) == len(objects), "two objects of one kind and name"
    return found


def test_ci_has_the_defaults_and_more():
    names = [case.name for case in ci_cases()]
    assert "default" in names
    assert len(names) > 10


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_helm_4_finds_nothing_to_complain_about(case: Case, kubernetes: str, helm4: Helm4):
    if case.runs_on(kubernetes):
        assert helm4.lint(case.values, kubernetes) == []
    else:
        assert case.since in " ".join(helm4.lint(case.values, kubernetes))


def test_helm_3_finds_nothing_to_complain_about(case: Case, helm3: Helm3):
    problems = helm3.lint(case.values)
    assert problems == [] if case.runs_on(LINTED_BY_HELM_3) else case.since in " ".join(problems)


@APIS
@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_all_objects_are_valid(case: Case, kubernetes: str, apis: tuple[str, ...], helm4: Helm4, schemas: SchemaChecks):
    if case.runs_on(kubernetes):
        objects = helm4.render(case.values, kubernetes, apis)
        assert objects
        assert schemas.problems(objects, kubernetes) == []
    else:
        message = refusal(lambda: helm4.render(case.values, kubernetes, apis))
        assert f"Kubernetes {case.since}" in message


@APIS
@pytest.mark.parametrize("kubernetes", [OLDEST, NEWEST])
def test_helm_3_renders_the_same(case: Case, kubernetes: str, apis: tuple[str, ...], helm3: Helm3, helm4: Helm4):
    if case.runs_on(kubernetes):
        assert by_identity(helm3.render(case.values, kubernetes, apis)) == by_identity(
            helm4.render(case.values, kubernetes, apis)
        )
    else:
        assert f"Kubernetes {case.since}" in refusal(lambda: helm3.render(case.values, kubernetes, apis))


def test_custom_resources_are_valid(helm4: Helm4):
    """Those of all files at once: a process for each would take too long."""
    every = [one for case in ci_cases() for one in helm4.render(case.values, apis=ADD_ONS) if is_custom(one)]
    different = {json.dumps(one, sort_keys=True): one for one in every}
    assert {one["kind"] for one in different.values()} == {
        "GRPCRoute",
        "HTTPRoute",
        "LeaderWorkerSet",
        "PodMonitor",
        "PrometheusRule",
        "ScaledObject",
        "ServiceMonitor",
    }
    assert custom_problems(different.values()) == []


def test_ci_covers_every_switch():
    """Each `enabled` of values.yaml is turned in some file, whichever way it stands there."""

    def switches(values: object, path: str = "") -> dict[str, bool]:
        if not isinstance(values, dict):
            return {}
        own = {path: values["enabled"]} if isinstance(values.get("enabled"), bool) else {}
        return own | {k: v for key, item in values.items() for k, v in switches(item, f"{path}.{key}").items()}

    turned = {
        switch
        for case in ci_cases()
        for switch, on in switches(case.values).items()
        if on != switches(defaults()).get(switch)
    }
    assert sorted(switches(defaults()).keys() - turned) == []


@pytest.mark.parametrize("case_values", [{"fullnameOverride": "x" * 53}, {"nameOverride": "y" * 63}])
def test_long_names_are_cut(case_values: dict[str, str], helm4: Helm4):
    long = [name(one) for one in helm4.render(case_values, apis=ADD_ONS) if len(name(one)) > 63]
    assert long == []
