"""Install, upgrade, rollback and uninstall: on the loopback API, or with `make test-cluster` on a real one."""

from __future__ import annotations

import json

import helm_python
import pytest

from tests.helm.cases import Values, merged
from tests.helm.cluster.release import Release, eventually
from tests.helm.objects import Objects, name

# The values of the cluster may say anything; these say what a test is about, and what would be in its way.
NO_SOURCE = {"s3": {"uri": ""}, "pvc": {"claimName": ""}, "hostPath": {"path": ""}, "image": {"reference": ""}}
LIGHT: Values = {
    "model": NO_SOURCE | {"source": "embedded"},
    "triton": {"gpu": {"count": 0}},
    "gateway": {"enabled": True, "autoscaling": {"enabled": False}},
    "ui": {"enabled": False},
    "ingress": {"uiHost": ""},
    "httpRoute": {"uiHostnames": []},
    "canary": {"enabled": False},
    "extraObjects": [],
}
"""What any cluster can start."""
DOWNLOADING: Values = LIGHT | {
    "model": NO_SOURCE | {"source": "hub"},
    "storage": {"type": "pvc", "existingClaim": "", "size": "1Gi"},
    "triton": {
        "gpu": {"count": 0},
        "replicas": 1,
        "autoscaling": {"type": "none"},
        "strategy": {"maxSurge": 0, "maxUnavailable": 1},
    },
}
"""Into a claim, which one pod can use, whatever its access mode."""


def light(values: Values) -> Values:
    return merged(values, LIGHT)


def named(objects: Objects, kind: str, component: str) -> str:
    """The stable track's only one of a kind."""
    labels = {name(one): one["metadata"]["labels"] for one in objects.of(kind)}
    (found,) = [
        each
        for each, its in labels.items()
        if its["app.kubernetes.io/component"] == component and its.get("triton-chat/track") != "canary"
    ]
    return found


def is_live(release: Release, objects: Objects) -> dict[str, bool]:
    return {f"{one['kind']} {name(one)}": name(one) in release.live(one["apiVersion"], one["kind"]) for one in objects}


def test_an_install_makes_all_objects(release: Release):
    objects = release.install(LIGHT)
    assert {"Deployment", "Service", "ConfigMap"} <= {one["kind"] for one in objects}
    assert all(is_live(release, objects).values()), is_live(release, objects)
    assert release.status()["status"] == "deployed"


def test_the_notes_name_the_next_command(release: Release):
    triton = named(release.install(LIGHT), "Deployment", "triton")
    notes = release.status()["notes"]
    assert f"kubectl -n {release.namespace} rollout status deployment/{triton}" in notes
    assert f"helm -n {release.namespace} test demo" in notes


def test_an_upgrade_drops_what_the_new_values_leave_out(release: Release):
    before = release.install(light({"ui": {"enabled": True}}))
    gateway = named(before, "Service", "gateway")
    uid = release.live("v1", "Service")[gateway].obj["metadata"]["uid"]
    after = release.upgrade(LIGHT)
    dropped = Objects(one for one in before if (one["kind"], name(one)) not in {(x["kind"], name(x)) for x in after})
    assert {one["kind"] for one in dropped} >= {"Deployment", "Service"}
    assert all("-ui" in name(one) for one in dropped)
    assert eventually(lambda: not any(is_live(release, dropped).values()))
    assert all(is_live(release, after).values())
    assert release.live("v1", "Service")[gateway].obj["metadata"]["uid"] == uid


def test_an_upgrade_leaves_alone_what_an_autoscaler_decided(release: Release):
    scaled = light({"gateway": {"autoscaling": {"enabled": True}}})
    deployment = named(release.install(scaled), "Deployment", "gateway")
    release.live("apps/v1", "Deployment")[deployment].patch({"spec": {"replicas": 3}})
    release.upgrade(scaled | {"commonLabels": {"changed": "yes"}})
    gateway = release.live("apps/v1", "Deployment")[deployment]
    assert gateway.obj["spec"]["replicas"] == 3
    assert gateway.labels["changed"] == "yes"


def test_an_upgrade_takes_back_a_field_that_is_no_longer_set(release: Release):
    release.install(light({"gateway": {"nodeSelector": {"disk": "fast"}}}))
    gateway = named(release.upgrade(LIGHT), "Deployment", "gateway")
    spec = release.live("apps/v1", "Deployment")[gateway].obj["spec"]["template"]["spec"]
    assert "disk" not in spec.get("nodeSelector", {})


def test_a_rollback_brings_the_former_settings_back(release: Release):
    def most_sequences() -> int:
        settings = release.live("v1", "ConfigMap")[config_map].obj["data"]["chat.json"]
        return int(json.loads(settings)["max_sequences"])

    config_map = named(release.install(light({"engine": {"max_sequences": 8}})), "ConfigMap", "triton")
    release.upgrade(light({"engine": {"max_sequences": 16}}))
    assert most_sequences() == 16
    release.rollback()
    assert most_sequences() == 8
    assert release.history() == ["superseded", "superseded", "deployed"]


def test_a_refused_upgrade_changes_nothing(release: Release):
    release.install(LIGHT)
    with pytest.raises(helm_python.HelmError, match=r"engine\.model"):
        release.upgrade(light({"engine": {"model": "a/b"}}))
    assert release.history() == ["deployed"]


def test_an_uninstall_leaves_the_downloads_alone(release: Release):
    objects = release.install(DOWNLOADING)
    kept = Objects(objects.of("PersistentVolumeClaim"))
    assert len(kept) == 1
    release.uninstall()
    assert all(is_live(release, kept).values())
    gone = Objects(one for one in objects if one not in kept)
    assert eventually(lambda: not any(is_live(release, gone).values()))


def test_the_release_can_be_installed_again_beside_its_claim(release: Release):
    first = release.install(DOWNLOADING)
    assert len(first.of("PersistentVolumeClaim")) == 1
    release.uninstall()
    assert eventually(lambda: not release.live("apps/v1", "Deployment"))
    objects = release.install(DOWNLOADING)
    assert all(is_live(release, objects).values())
