"""LeaderWorkerSet v1, as its controller takes it; nobody publishes its types. Its pods are Kubernetes' own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import kubernetes_validate
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.helm.objects import Object, group_templates, label

CountOrPercent = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]+%$")]
_HASH = 11
"""What a StatefulSet adds to its name in a label of its pods, with a dash."""
_GROUP = 3
"""A group's index in the name of its StatefulSet, with a dash."""
_LONGEST_LABEL = 63


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RollingUpdate(_Strict):
    partition: int = Field(0, ge=0)
    maxUnavailable: CountOrPercent = 1  # noqa: N815
    maxSurge: CountOrPercent = 0  # noqa: N815


class _Rollout(_Strict):
    type: Literal["RollingUpdate"]
    rollingUpdateConfiguration: _RollingUpdate | None = None  # noqa: N815


class _Network(_Strict):
    subdomainPolicy: Literal["Shared", "UniquePerReplica"]  # noqa: N815


class _Group(_Strict):
    size: int = Field(1, ge=1)
    restartPolicy: Literal["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]  # noqa: N815
    leaderTemplate: dict[str, Any]  # noqa: N815
    workerTemplate: dict[str, Any]  # noqa: N815


class _Spec(_Strict):
    replicas: int = Field(1, ge=0)
    leaderWorkerTemplate: _Group  # noqa: N815
    rolloutStrategy: _Rollout | None = None  # noqa: N815
    startupPolicy: Literal["LeaderCreated", "LeaderReady"] = "LeaderCreated"  # noqa: N815
    networkConfig: _Network | None = None  # noqa: N815


class _LeaderWorkerSet(_Strict):
    apiVersion: Literal["leaderworkerset.x-k8s.io/v1"]  # noqa: N815
    kind: Literal["LeaderWorkerSet"]
    metadata: dict[str, Any]
    spec: _Spec


def leader_worker_problems(one: Object, kubernetes: str) -> list[str]:
    """What is wrong with it, its pods and its name, of which those of StatefulSets are made."""
    try:
        _LeaderWorkerSet.model_validate(one)
        for template in group_templates(one):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            kubernetes_validate.validate(pod, kubernetes, strict=True)
    except (ValidationError, kubernetes_validate.ValidationError) as error:
        return [f"{label(one)}: {error}"]
    if len(one["metadata"]["name"]) + _GROUP + _HASH > _LONGEST_LABEL:
        return [f"{label(one)}: the name is too long for the labels of its pods"]
    return []
