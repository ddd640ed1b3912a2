"""The release serves: for a real cluster, which `make test-cluster` gives."""

from __future__ import annotations

import pytest
from pytest_helm_charts.k8s.deployment import wait_for_deployments_to_run

from tests.helm.cluster.release import Release, eventually

LOAD_SECONDS = 3600
"""A checkpoint may have to be downloaded first."""
TEST_SECONDS = 600


@pytest.mark.timeout(2 * LOAD_SECONDS)
def test_pods_get_ready_and_the_charts_tests_pass(release: Release):
    objects = release.install({})
    deployments = sorted(objects.names("Deployment"))
    wait_for_deployments_to_run(release.client, deployments, release.namespace, LOAD_SECONDS, missing_ok=False)
    release.test(TEST_SECONDS)
    assert eventually(lambda: not release.test_pods())


@pytest.mark.timeout(3 * LOAD_SECONDS)
def test_an_upgrade_replaces_the_pods_and_they_get_ready(release: Release):
    deployments = sorted(release.install({}).names("Deployment"))
    wait_for_deployments_to_run(release.client, deployments, release.namespace, LOAD_SECONDS, missing_ok=False)
    release.upgrade({"engine": {"default_max_tokens": 64}})
    wait_for_deployments_to_run(release.client, deployments, release.namespace, LOAD_SECONDS, missing_ok=False)
    release.test(TEST_SECONDS)
