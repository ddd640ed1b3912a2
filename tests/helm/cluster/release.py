"""One release of the chart in one namespace of a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import helm_python
import pykube
from helm_python import _native

from tests.helm.cases import Values, merged
from tests.helm.engines import RELEASE
from tests.helm.objects import Objects, parsed
from tests.helm.paths import CHART

_NO_CONTEXT = _native.HANDLE(0)


class Release:
    """Helm 4's engine. Its Python methods leave out some options, so two native calls are used."""

    def __init__(
        self, client: pykube.HTTPClient, kubeconfig: str, namespace: str, values: Values, storage: str | None
    ) -> None:
        """`storage`: where Helm keeps releases; "memory" for an API that speaks JSON alone, None for Secrets."""
        self.client, self.namespace = client, namespace
        self._values = values
        self._validates = storage is None
        self._config = helm_python.Config(kubeconfig_path=kubeconfig, namespace=namespace, storage_driver=storage)
        self._chart = helm_python.Chart.load(CHART)

    def install(self, values: Values) -> Objects:
        """Gives the objects of the manifest."""
        return self._act("helm_install", values)

    def upgrade(self, values: Values) -> Objects:
        return self._act("helm_upgrade", values, reset_values=True)

    def rollback(self) -> None:
        self._config.rollback(RELEASE)

    def uninstall(self) -> None:
        self._config.uninstall(RELEASE)

    def test(self, seconds: int) -> None:
        """Runs the chart's test pods; raises AssertionError with the logs of one that failed. The others are gone."""
        try:
            self._config.test(RELEASE, timeout=seconds, logs=False)
        except helm_python.HelmError as error:
            logs = [f"{pod.name}: {pod.logs()}" for pod in self.test_pods()]
            raise AssertionError("\n".join([str(error), *logs])) from error

    def test_pods(self) -> list[pykube.Pod]:
        labels = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "test"}
        return list(pykube.Pod.objects(self.client, namespace=self.namespace).filter(selector=labels))

    def status(self) -> dict[str, Any]:
        return self._config.status(RELEASE)

    def history(self) -> list[str]:
        return [revision["status"] for revision in self._config.history(RELEASE)]

    def live(self, api_version: str, kind: str) -> dict[str, pykube.objects.NamespacedAPIObject]:
        """The release's objects of a kind in the cluster, by name."""
        cls = pykube.object_factory(self.client, api_version, kind)
        labels = {"app.kubernetes.io/instance": RELEASE}
        return {one.name: one for one in cls.objects(self.client, namespace=self.namespace).filter(selector=labels)}

    def __enter__(self) -> Release:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chart.close()
        self._config.close()

    def _act(self, action: str, values: Values, **options: Any) -> Objects:
        given = merged(values, self._values)
        options |= {"namespace": self.namespace, "disable_openapi_validation": not self._validates}
        answer = _native.call_string(
            action,
            self._config._raw(),
            _NO_CONTEXT,
            self._chart._raw(),
            None,
            RELEASE,
            json.dumps(given),
            json.dumps(options),
        )
        return parsed(json.loads(answer)["manifest"])


def eventually(holds: Callable[[], bool], seconds: float = 120) -> bool:
    """Asks until `holds`; a real cluster deletes and starts things when it gets to it."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True
