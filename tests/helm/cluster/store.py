"""What a Kubernetes API server keeps: the objects, and who applied which of their fields."""

from __future__ import annotations

import copy
import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

Object = dict[str, Any]


class ApiError(Exception):
    """An answer of Kubernetes' kind `Status`."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def status(self) -> Object:
        about = {"code": self.code, "reason": self.reason, "message": str(self)}
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", **about}


@dataclass(frozen=True)
class Key:
    """Where an object is; `resource` is plural. No namespace: a cluster-scoped object, or those of all namespaces."""

    group_version: str
    resource: str
    namespace: str
    name: str = ""


@dataclass
class Store:
    objects: dict[Key, Object] = field(default_factory=dict)
    _applied: dict[Key, dict[str, Object]] = field(default_factory=dict)
    _revisions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def get(self, key: Key) -> Object:
        if key not in self.objects:
            raise ApiError(404, "NotFound", f'{key.resource} "{key.name}" not found')
        return self.objects[key]

    def list(self, where: Key, labels: Mapping[str, str]) -> list[Object]:
        """Those of a collection that have all of `labels`."""
        return [
            one
            for key, one in self.objects.items()
            if replace(key, name="", namespace=where.namespace and key.namespace) == where
            and labels.items() <= one["metadata"].get("labels", {}).items()
        ]

    def create(self, key: Key, body: Object) -> Object:
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{key.resource} "{key.name}" already exists')
        if (
            key.namespace
            and replace(key, group_version="v1", resource="namespaces", namespace="", name=key.namespace)
            not in self.objects
        ):
            raise ApiError(404, "NotFound", f'namespaces "{key.namespace}" not found')
        born = {"uid": str(uuid.uuid4()), "creationTimestamp": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"}
        return self._put(key, {**body, "metadata": {"namespace": key.namespace, **body["metadata"], **born}})

    def replace(self, key: Key, body: Object) -> Object:
        live = self.get(key)
        _check_immutable(live, body)
        kept = {name: live["metadata"][name] for name in ("uid", "creationTimestamp", "namespace")}
        return self._put(key, {**body, "metadata": {**body["metadata"], **kept}})

    def apply(self, key: Key, manager: str, body: Object) -> Object:
        """Server-side apply: `manager` sets these fields, and gives up those it set before and no longer names."""
        before = self._applied.get(key, {})
        if key in self.objects:
            done = self.replace(key, _applied(self.get(key), before.get(manager, {}), body))
        else:
            done = self.create(key, body)
        self._applied[key] = {**before, manager: copy.deepcopy(body)}
        return done

    def merge(self, key: Key, patch: Object) -> Object:
        """JSON merge patch (RFC 7386)."""
        return self.replace(key, _merged(self.get(key), patch))

    def delete(self, key: Key) -> Object:
        """With a namespace goes all that is in it."""
        gone = self.get(key)
        inside = [other for other in self.objects if key.resource == "namespaces" and other.namespace == key.name]
        for each in (key, *inside):
            self.objects.pop(each)
            self._applied.pop(each, None)
        return gone

    def _put(self, key: Key, body: Object) -> Object:
        done = copy.deepcopy(body)
        done["metadata"]["resourceVersion"] = str(next(self._revisions))
        self.objects[key] = done
        return done


def _applied(live: Any, before: Any, now: Any) -> Any:
    """`live` with what changed from `before` to `now`; a list is one value."""
    if not (isinstance(live, dict) and isinstance(now, dict)):
        return now
    before = before if isinstance(before, dict) else {}
    kept = {key: value for key, value in live.items() if key in now or key not in before}
    return kept | {key: _applied(live.get(key), before.get(key), value) for key, value in now.items()}


def _merged(live: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    base = live if isinstance(live, dict) else {}
    given = {key: _merged(base.get(key), value) for key, value in patch.items() if value is not None}
    return {key: value for key, value in base.items() if key not in patch} | given


def _check_immutable(live: Object, body: Object) -> None:
    """The field whose change a Deployment refuses."""
    if live["kind"] == "Deployment" and live["spec"]["selector"] != body["spec"]["selector"]:
        message = f'Deployment.apps "{live["metadata"]["name"]}" is invalid: spec.selector: field is immutable'
        raise ApiError(422, "Invalid", message)
