"""A process that is dead or stopped takes its container out of the Service, by the probes that the chart sets."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.helm.engines import Helm4
from tests.image.containers import TINY, Containers

OUT_OF_THE_SERVICE_S = 10


def chart_probe() -> dict[str, Any]:
    probe: dict[str, Any] = Helm4().render({}).pod("triton").container("triton")["readinessProbe"]
    return probe


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_broken_backend_is_soon_not_ready(signal: str, containers: Containers) -> None:
    """The time is what the kubelet needs at most: it begins a probe every few seconds, whenever the process broke."""
    probe = chart_probe()
    triton = containers.triton(f"--env=TRITON_CHAT_MODEL={TINY}")
    assert triton.run(*probe["exec"]["command"]).returncode == 0
    assert len(triton.script("strike.py", "chat", signal)) == 1
    began, failures = time.monotonic(), 0
    while failures < probe["failureThreshold"]:
        time.sleep(probe["periodSeconds"])
        # Of a container that has ended, no command starts.
        failures = failures + 1 if triton.run(*probe["exec"]["command"]).returncode else 0
        assert time.monotonic() - began < OUT_OF_THE_SERVICE_S
