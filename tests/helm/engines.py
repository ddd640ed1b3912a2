"""Two real Helms behind one interface: the engine of Helm 4, in this process, and the command of Helm 3.10."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import helm_python
from helm_python import _native

from tests.helm.cases import NEWEST, Values
from tests.helm.objects import Objects, parsed
from tests.helm.paths import CHART, HELM_3, installed

RELEASE = "demo"
NAMESPACE = "serving"
_WARNING = 2


class RefusedError(Exception):
    """The chart said no; the message is Helm's."""


class Helm(Protocol):
    def render(self, values: Values, kubernetes: str = NEWEST, apis: Sequence[str] = ()) -> Objects:
        """All objects, those of hooks too. Raises RefusedError."""

    def lint(self, values: Values, kubernetes: str = NEWEST) -> list[str]:
        """What `helm lint --strict` finds: warnings and errors."""


class Helm4:
    """helm-python-sdk's engine. Its Python methods leave out the capabilities, so the native calls are used."""

    def __init__(self, chart: Path = CHART) -> None:
        self.path = chart
        self._chart = helm_python.Chart.load(chart)
        self._render = cache(self._render_once)

    def render(self, values: Values, kubernetes: str = NEWEST, apis: Sequence[str] = ()) -> Objects:
        return self._render(json.dumps(values, sort_keys=True), kubernetes, tuple(apis))

    def texts(self, values: Values, kubernetes: str = NEWEST, apis: Sequence[str] = ()) -> dict[str, str]:
        """What each template gives, by its path in the chart; NOTES.txt too."""
        options = {
            "name": RELEASE,
            "namespace": NAMESPACE,
            "kube_version": f"v{kubernetes}.0",
            "api_versions": list(apis),
        }
        try:
            answer = _native.call_string("helm_render", self._chart._raw(), json.dumps(values), json.dumps(options))
        except helm_python.HelmError as error:
            raise RefusedError(str(error)) from None
        texts: dict[str, str] = json.loads(answer)
        return texts

    def lint(self, values: Values, kubernetes: str = NEWEST) -> list[str]:
        report = helm_python.lint(self.path, values, strict=True, namespace=NAMESPACE, kube_version=f"v{kubernetes}.0")
        found = [message["error"] for message in report["messages"] if message["severity"] >= _WARNING]
        return [*found, *report["errors"]]

    def package(self, folder: Path) -> Path:
        return Path(helm_python.package(self.path, destination=folder))

    def _render_once(self, values: str, kubernetes: str, apis: tuple[str, ...]) -> Objects:
        texts = self.texts(json.loads(values), kubernetes, apis)
        return parsed("\n---\n".join(text for path, text in texts.items() if path.endswith((".yaml", ".yml"))))


class Helm3:
    """The `helm` command, with no configuration but its own and no cluster."""

    def __init__(self, home: Path, chart: Path = CHART) -> None:
        self.path = chart
        self._command = installed(HELM_3)
        self._env = {"HOME": str(home), "KUBECONFIG": os.devnull, "PATH": os.environ["PATH"]}

    def render(self, values: Values, kubernetes: str = NEWEST, apis: Sequence[str] = ()) -> Objects:
        options = [f"--api-versions={api}" for api in apis]
        done = self._run(values, "template", RELEASE, str(self.path), f"--kube-version={kubernetes}.0", *options)
        if done.returncode:
            raise RefusedError(done.stderr)
        return parsed(done.stdout)

    def lint(self, values: Values, kubernetes: str = NEWEST) -> list[str]:
        done = self._run(values, "lint", "--strict", str(self.path))
        if done.returncode == 0:
            return []
        return re.findall(r"^\[(?:WARNING|ERROR)\] .*(?:\n(?!\[|\n).*)*", done.stdout, re.MULTILINE) or [done.stderr]

    def _run(self, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._command), *arguments, f"--namespace={NAMESPACE}", "--values=-"]
        return subprocess.run(
            command, input=json.dumps(values), env=self._env, capture_output=True, text=True, timeout=60, check=False
        )


def refusal(action: Callable[[], object]) -> str:
    """The message of the RefusedError that `action` raises; empty if it raises none."""
    try:
        action()
    except RefusedError as error:
        return str(error)
    return ""
