"""The versions of Kubernetes that the chart is for: from the oldest it names to the newest whose schemas are here."""

from __future__ import annotations

from kubernetes_validate import utils

OLDEST = "1.28"


def _minor(version: str) -> int:
    return int(version.split(".")[1])


KUBERNETES: tuple[str, ...] = tuple(
    f"1.{minor}" for minor in sorted({_minor(version) for version in utils.all_versions()}) if minor >= _minor(OLDEST)
)
NEWEST = KUBERNETES[-1]
