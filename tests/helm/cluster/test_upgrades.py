"""From any kind of values to any other, without touching what a Deployment never lets change."""

from __future__ import annotations

from tests.helm.cases import Case
from tests.helm.cluster.release import Release


def test_every_file_of_ci_can_follow_the_defaults_and_be_left_again(case: Case, release: Release):
    release.install({})
    release.upgrade(case.values)
    release.upgrade({})
    assert release.history()[-1] == "deployed"
