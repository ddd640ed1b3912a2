from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pytest_helm_charts.clusters import Cluster
from pytest_helm_charts.k8s.fixtures import NamespaceFactoryFunc

from tests.helm.cases import NEWEST, Values, ci_case
from tests.helm.cluster.api_server import ApiServer, serving
from tests.helm.cluster.release import Release
from tests.helm.schemas import SchemaChecks

HERE = Path(__file__).parent
ONLY_WHERE_PODS_RUN = "test_running.py"
CLUSTERS = ("default", "cpu", "extras", "s3", "triton-alone", "keys-and-tls")
"""Files of ci/."""
REAL_CLUSTER_SECONDS = 900
RESTRICTED = {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What asks running pods is for `make test-cluster`, which gives a cluster."""
    return True if collection_path.name == ONLY_WHERE_PODS_RUN and not given(config) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A real cluster takes its time, for one to delete a namespace."""
    for item in items:
        if given(config) and HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(REAL_CLUSTER_SECONDS))


def given(config: pytest.Config) -> str | None:
    """The kubeconfig of a real cluster. An environment variable alone is none: `make test` must not change clusters."""
    path: str | None = config.getoption("kubeconfig")
    return path


@pytest.fixture(scope="module")
def api_server() -> Iterator[ApiServer]:
    schemas = SchemaChecks()
    with serving(NEWEST, lambda one: schemas.problems([one], NEWEST)) as server:
        # What Helm remembers of another server that had this port.
        remembered = Path.home() / ".kube" / "cache" / "discovery" / server.url.split("//")[1].replace(":", "_")
        shutil.rmtree(remembered, ignore_errors=True)
        yield server
        shutil.rmtree(remembered, ignore_errors=True)


@pytest.fixture(scope="module")
def kube_config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the cluster given by `--kubeconfig`, else of the loopback server; pytest-helm-charts connects to it."""
    real = given(request.config)
    if real:
        return real
    server: ApiServer = request.getfixturevalue("api_server")
    path = tmp_path_factory.mktemp("kube") / "config"
    path.write_text(server.kubeconfig(), encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`make test-cluster VALUES=...` must work with any values, so the loopback API is given several."""
    own = given(metafunc.config) or metafunc.config.getoption("app_config_file_path")
    if metafunc.module.__name__.endswith(".test_lifecycle") and not own:
        metafunc.parametrize("cluster_values", CLUSTERS, indirect=True)


@pytest.fixture(scope="module")
def cluster_values(values_file_path: str, request: pytest.FixtureRequest) -> Values:
    """Values for this cluster, such as where its images are: `make test-cluster VALUES=...`."""
    if not values_file_path:
        return ci_case(request.param).values if hasattr(request, "param") else {}
    values: Values = yaml.safe_load(Path(values_file_path).read_text(encoding="utf-8"))
    return values


@pytest.fixture
def release(
    kube_cluster: Cluster,
    kube_config: str,
    namespace_factory_function_scope: NamespaceFactoryFunc,
    cluster_values: Values,
    request: pytest.FixtureRequest,
) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace of its own that enforces the restricted profile."""
    namespace = namespace_factory_function_scope(f"triton-chat-{abs(hash(request.node.nodeid)):x}"[:40], RESTRICTED)
    storage = None if given(request.config) else "memory"
    with Release(kube_cluster.kube_client, kube_config, namespace.name, cluster_values, storage) as made:
        yield made
