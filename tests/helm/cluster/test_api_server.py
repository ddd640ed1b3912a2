"""The loopback API does what Kubernetes documents, as far as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.helm.cases import NEWEST
from tests.helm.cluster.api_server import ApiServer, key_of, serving
from tests.helm.cluster.store import ApiError, Key

MAPS = "/api/v1/namespaces/here/configmaps"
DEPLOYMENTS = "/apis/apps/v1/namespaces/here/deployments"


class Caller:
    """A client that knows nothing of the server but its address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
        answer = requests.request(method, self._url + path, json=body, headers={"Content-Type": kind}, timeout=10)
        return answer.status_code, answer.json()

    def apply(self, path: str, body: Any, manager: str = "helm") -> tuple[int, Any]:
        return self("PATCH", f"{path}?fieldManager={manager}", body, "application/apply-patch+yaml")


def config_map(name: str = "x", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": name}}, "data": data}


def deployment(**spec: Any) -> dict[str, Any]:
    selector = {"selector": {"matchLabels": {"app": "x"}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": selector | spec}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with serving(NEWEST, lambda one: ["no kind Wrong"] if one["kind"] == "Wrong" else []) as running:
        yield running


@pytest.fixture
def call(server: ApiServer) -> Caller:
    caller = Caller(server.url)
    assert caller("POST", "/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": "here"}})[0] == 201
    return caller


def test_discovery_leads_to_every_resource(call: Caller):
    assert call("GET", "/version")[1]["gitVersion"] == f"v{NEWEST}.0"
    assert call("GET", "/api")[1]["versions"] == ["v1"]
    groups = [version["groupVersion"] for group in call("GET", "/apis")[1]["groups"] for version in group["versions"]]
    assert "apps/v1" in groups
    kinds = {one["kind"]: one for one in call("GET", "/apis/apps/v1")[1]["resources"]}
    assert kinds["Deployment"]["namespaced"] is True
    assert call("GET", "/apis/apps/v1beta1")[0] == 404


def test_paths_name_objects():
    assert key_of("/api/v1/namespaces/here") == Key("v1", "namespaces", "", "here")
    assert key_of(MAPS) == Key("v1", "configmaps", "here")
    assert key_of(f"{DEPLOYMENTS}/x") == Key("apps/v1", "deployments", "here", "x")
    for path in ("/", "/api/v1/gadgets", f"{DEPLOYMENTS}/x/status", "/openapi/v2"):
        with pytest.raises(ApiError, match="could not find"):
            key_of(path)


def test_objects_are_made_read_replaced_and_deleted(call: Caller):
    code, made = call("POST", MAPS, config_map(a="1"))
    assert (code, made["metadata"]["namespace"]) == (201, "here")
    assert call("POST", MAPS, config_map())[0] == 409
    code, replaced = call("PUT", f"{MAPS}/x", config_map(b="2"))
    assert (code, replaced["data"]) == (200, {"b": "2"})
    assert replaced["metadata"]["uid"] == made["metadata"]["uid"]
    assert replaced["metadata"]["resourceVersion"] != made["metadata"]["resourceVersion"]
    assert call("GET", f"{MAPS}/x")[1] == replaced
    assert call("DELETE", f"{MAPS}/x")[0] == 200
    code, status = call("GET", f"{MAPS}/x")
    assert (code, status["kind"], status["reason"]) == (404, "Status", "NotFound")


def test_nothing_is_made_in_a_namespace_that_is_not_there(call: Caller):
    assert call("POST", MAPS.replace("here", "nowhere"), config_map())[0] == 404


def test_lists_go_by_namespace_and_label(call: Caller):
    call("POST", "/api/v1/namespaces", {"kind": "Namespace", "metadata": {"name": "there"}})
    for name in ("x", "y"):
        call("POST", MAPS, config_map(name))
    call("POST", MAPS.replace("here", "there"), config_map("x"))

    def listed(path: str) -> int:
        return len(call("GET", path)[1]["items"])

    assert (listed(MAPS), listed(f"{MAPS}?labelSelector=app%3Dx"), listed("/api/v1/configmaps")) == (2, 1, 3)


def test_an_apply_takes_back_what_its_manager_no_longer_names(call: Caller):
    call.apply(f"{MAPS}/x", config_map(a="1", b="2"))
    assert call.apply(f"{MAPS}/x", config_map(a="3"))[1]["data"] == {"a": "3"}


def test_an_apply_leaves_alone_what_others_set(call: Caller):
    call.apply(f"{DEPLOYMENTS}/x", deployment(paused=True))
    call("PATCH", f"{DEPLOYMENTS}/x", {"spec": {"replicas": 3}}, "application/merge-patch+json")
    _, after = call.apply(f"{DEPLOYMENTS}/x", deployment())
    assert after["spec"]["replicas"] == 3
    assert "paused" not in after["spec"]


def test_a_merge_patch_sets_and_removes(call: Caller):
    call("POST", MAPS, config_map(a="1", b="2"))
    patch = {"data": {"a": None, "c": "3"}}
    assert call("PATCH", f"{MAPS}/x", patch, "application/merge-patch+json")[1]["data"] == {"b": "2", "c": "3"}


def test_the_selector_of_a_deployment_cannot_change(call: Caller):
    call.apply(f"{DEPLOYMENTS}/x", deployment())
    code, status = call.apply(f"{DEPLOYMENTS}/x", deployment(selector={"matchLabels": {"app": "y"}}))
    assert (code, status["reason"]) == (422, "Invalid")
    assert "immutable" in status["message"]


def test_objects_that_break_a_schema_are_refused(call: Caller):
    code, status = call("POST", MAPS, config_map() | {"kind": "Wrong"})
    assert (code, status["message"]) == (422, "no kind Wrong")


def test_a_namespace_takes_all_with_it(call: Caller, server: ApiServer):
    call("POST", MAPS, config_map())
    call.apply(f"{DEPLOYMENTS}/x", deployment())
    assert call("DELETE", "/api/v1/namespaces/here")[0] == 200
    assert server.store.objects == {}


@pytest.mark.parametrize(
    ("method", "path", "kind", "code"),
    [
        ("GET", f"{MAPS}?watch=true", "application/json", 400),
        ("PATCH", f"{MAPS}/x?dryRun=All", "application/apply-patch+yaml", 400),
        ("PATCH", f"{MAPS}/x", "application/json-patch+json", 415),
    ],
)
def test_what_is_not_known_is_refused(method: str, path: str, kind: str, code: int, call: Caller):
    assert call(method, path, config_map(), kind)[0] == code
