"""Install, upgrade, rollback and uninstall: on the loopback API, or with `make test-cluster` on a real one."""

from __future__ import annotations

import json

import helm_python
import pytest

from tests.helm.cluster.release import Release, eventually
from tests.helm.objects import Objects, name

LIGHT = {"model": {"source": "embedded"}, "triton": {"gpu": {"count": 0}}}
"""What any cluster can start."""


def is_live(release: Release, objects: Objects) -> dict[str, bool]:
    return {f"{one['kind']} {name(one)}": name(one) in release.live(one["apiVersion"], one["kind"]) for one in objects}


def test_an_install_makes_all_objects(release: Release):
    objects = release.install(LIGHT)
    assert {"Deployment", "Service", "ConfigMap", "NetworkPolicy"} <= {one["kind"] for one in objects}
    assert all(is_live(release, objects).values()), is_live(release, objects)
    assert release.status()["status"] == "deployed"


def test_the_notes_name_the_next_command(release: Release):
    release.install(LIGHT)
    notes = release.status()["notes"]
    assert f"kubectl -n {release.namespace} rollout status deployment/demo-triton-chat-triton" in notes
    assert f"helm -n {release.namespace} test demo" in notes


def test_an_upgrade_drops_what_the_new_values_leave_out(release: Release):
    before = release.install(LIGHT | {"ui": {"enabled": True}})
    uid = release.live("v1", "Service")["demo-triton-chat-gateway"].obj["metadata"]["uid"]
    after = release.upgrade(LIGHT)
    dropped = Objects(one for one in before if (one["kind"], name(one)) not in {(x["kind"], name(x)) for x in after})
    assert {one["kind"] for one in dropped} >= {"Deployment", "Service", "NetworkPolicy"}
    assert all("-ui" in name(one) for one in dropped)
    assert eventually(lambda: not any(is_live(release, dropped).values()))
    assert all(is_live(release, after).values())
    assert release.live("v1", "Service")["demo-triton-chat-gateway"].obj["metadata"]["uid"] == uid


def test_an_upgrade_leaves_alone_what_an_autoscaler_decided(release: Release):
    scaled = LIGHT | {"gateway": {"autoscaling": {"enabled": True}}}
    release.install(scaled)
    release.live("apps/v1", "Deployment")["demo-triton-chat-gateway"].patch({"spec": {"replicas": 3}})
    release.upgrade(scaled | {"commonLabels": {"changed": "yes"}})
    gateway = release.live("apps/v1", "Deployment")["demo-triton-chat-gateway"]
    assert gateway.obj["spec"]["replicas"] == 3
    assert gateway.labels["changed"] == "yes"


def test_an_upgrade_takes_back_a_field_that_is_no_longer_set(release: Release):
    release.install(LIGHT | {"gateway": {"nodeSelector": {"disk": "fast"}}})
    release.upgrade(LIGHT)
    spec = release.live("apps/v1", "Deployment")["demo-triton-chat-gateway"].obj["spec"]["template"]["spec"]
    assert not spec.get("nodeSelector")


def test_a_rollback_brings_the_former_settings_back(release: Release):
    def most_sequences() -> int:
        return int(
            json.loads(release.live("v1", "ConfigMap")["demo-triton-chat-engine"].obj["data"]["chat.json"])[
                "max_sequences"
            ]
        )

    release.install(LIGHT | {"engine": {"max_sequences": 8}})
    release.upgrade(LIGHT | {"engine": {"max_sequences": 16}})
    assert most_sequences() == 16
    release.rollback()
    assert most_sequences() == 8
    assert release.history() == ["superseded", "superseded", "deployed"]


def test_a_refused_upgrade_changes_nothing(release: Release):
    release.install(LIGHT)
    with pytest.raises(helm_python.HelmError, match=r"engine\.model"):
        release.upgrade(LIGHT | {"engine": {"model": "a/b"}})
    assert release.history() == ["deployed"]


def test_an_uninstall_leaves_the_downloads_alone(release: Release):
    downloading = {"storage": {"type": "pvc", "size": "1Gi"}, "triton": {"gpu": {"count": 0}}}
    objects = release.install(downloading)
    release.uninstall()
    kept = objects.of("PersistentVolumeClaim")
    assert [name(one) for one in kept] == ["demo-triton-chat-models"]
    assert all(is_live(release, Objects(kept)).values())
    gone = Objects(one for one in objects if one not in kept)
    assert eventually(lambda: not any(is_live(release, gone).values()))


def test_the_release_can_be_installed_again_beside_its_claim(release: Release):
    downloading = {"storage": {"type": "pvc", "size": "1Gi"}, "triton": {"gpu": {"count": 0}}}
    release.install(downloading)
    release.uninstall()
    assert eventually(lambda: not release.live("apps/v1", "Deployment"))
    objects = release.install(downloading)
    assert all(is_live(release, objects).values())
