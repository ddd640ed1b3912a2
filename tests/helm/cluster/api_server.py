"""A Kubernetes API on a loopback port: discovery, objects, server-side apply. No controllers: nothing ever runs.

As much as Helm and a client ask of it. What it does not know it refuses, and says so; so it does with objects that
break a schema.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.helm.cluster.store import ApiError, Key, Object, Store

RESOURCES: Mapping[str, Mapping[str, str]] = {
    "v1": {
        "namespaces": "Namespace",
        "configmaps": "ConfigMap",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps/v1": {"deployments": "Deployment"},
    "autoscaling/v2": {"horizontalpodautoscalers": "HorizontalPodAutoscaler"},
    "gateway.networking.k8s.io/v1": {"grpcroutes": "GRPCRoute", "httproutes": "HTTPRoute"},
    "keda.sh/v1alpha1": {"scaledobjects": "ScaledObject"},
    "leaderworkerset.x-k8s.io/v1": {"leaderworkersets": "LeaderWorkerSet"},
    "monitoring.coreos.com/v1": {
        "podmonitors": "PodMonitor",
        "prometheusrules": "PrometheusRule",
        "servicemonitors": "ServiceMonitor",
    },
    "networking.k8s.io/v1": {"ingresses": "Ingress", "networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}
_APPLY = "application/apply-patch+yaml"
_MERGE = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_KNOWN = {"fieldManager", "fieldValidation", "force", "labelSelector", "limit", "resourceVersion", "timeout"}


@dataclass
class ApiServer:
    """A running server; `store` is what it holds."""

    url: str
    store: Store

    def kubeconfig(self) -> str:
        """As YAML."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "loopback", "cluster": {"server": self.url}}],
                "users": [{"name": "loopback", "user": {}}],
                "contexts": [{"name": "loopback", "context": {"cluster": "loopback", "user": "loopback"}}],
                "current-context": "loopback",
            }
        )


@contextmanager
def serving(kubernetes: str, check: Callable[[Object], list[str]]) -> Iterator[ApiServer]:
    """A server of this version of Kubernetes, on a free port. `check` tells what is wrong with an object."""
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store, "kubernetes": kubernetes, "check": staticmethod(check)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield ApiServer(f"http://127.0.0.1:{server.server_port}", store)
        server.shutdown()
        thread.join()


def discovery(path: str, kubernetes: str) -> Object | None:
    """The pages by which a client learns what there is."""
    major, minor = kubernetes.split(".")
    if path == "/version":
        return {"major": major, "minor": minor, "gitVersion": f"v{kubernetes}.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(one) for one in RESOURCES if "/" in one]}
    group_version = path.removeprefix("/api/").removeprefix("/apis/")
    if group_version not in RESOURCES:
        return None
    resources = [_resource(plural, kind) for plural, kind in RESOURCES[group_version].items()]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def key_of(path: str) -> Key:
    """`/apis/apps/v1/namespaces/x/deployments/y` and the like. Raises ApiError (404)."""
    root, *parts = path.strip("/").split("/")
    take = {"api": 1, "apis": 2}.get(root, 0)
    group_version, rest = "/".join(parts[:take]), parts[take:]
    namespace = rest[1] if len(rest) > 2 and rest[0] == "namespaces" else ""
    resource, *name = rest[2:] if namespace else rest or [""]
    if resource not in RESOURCES.get(group_version, {}) or len(name) > 1:
        raise ApiError(404, "NotFound", f"the server could not find the requested resource {path}")
    return Key(group_version, resource, namespace, *name)


class _Handler(BaseHTTPRequestHandler):
    store: Store
    kubernetes: str
    check: Callable[[Object], list[str]]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer goes out in two parts

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        try:
            code, answer = self._answer(body)
        except ApiError as error:
            code, answer = error.code, error.status()
        payload = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(self, body: bytes) -> tuple[int, Object]:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        if self.command == "GET" and (page := discovery(url.path.rstrip("/"), self.kubernetes)):
            return 200, page
        if set(query) - _KNOWN:
            raise ApiError(400, "BadRequest", f"not known here: {sorted(set(query) - _KNOWN)}")
        key = key_of(url.path)
        if self.command == "GET":
            return 200, self.store.get(key) if key.name else self._list(key, query.get("labelSelector", ""))
        if self.command == "DELETE":
            return 200, self.store.delete(key)
        return self._write(key, query, yaml.safe_load(body))

    def _write(self, key: Key, query: Mapping[str, str], body: Object) -> tuple[int, Object]:
        kind = self.headers["Content-Type"]
        if self.command == "PATCH" and kind in _MERGE:
            return 200, self.store.merge(key, body)
        if problems := self.check(body):
            raise ApiError(422, "Invalid", "; ".join(problems))
        if self.command == "POST":
            return 201, self.store.create(replace(key, name=body["metadata"]["name"]), body)
        if self.command == "PUT":
            return 200, self.store.replace(key, body)
        if kind == _APPLY:
            return 200, self.store.apply(key, query["fieldManager"], body)
        raise ApiError(415, "UnsupportedMediaType", f"a patch of type {kind}")

    def _list(self, key: Key, selector: str) -> Object:
        labels = dict(part.split("=") for part in selector.split(",") if part)
        kind = RESOURCES[key.group_version][key.resource]
        items = self.store.list(key, labels)
        return {"kind": f"{kind}List", "apiVersion": key.group_version, "metadata": {}, "items": items}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""


def _group(group_version: str) -> Object:
    version = {"groupVersion": group_version, "version": group_version.split("/")[1]}
    return {"name": group_version.split("/", maxsplit=1)[0], "versions": [version], "preferredVersion": version}


def _resource(plural: str, kind: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update"]
    return {
        "name": plural,
        "singularName": kind.lower(),
        "namespaced": kind != "Namespace",
        "kind": kind,
        "verbs": verbs,
    }
