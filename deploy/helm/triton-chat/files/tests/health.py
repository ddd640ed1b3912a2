"""Checks that Triton and, where it is installed, the gateway are ready."""

import os
import urllib.request

from triton_chat import ChatClient

with ChatClient(os.environ["TRITON_URL"]) as triton:
    assert triton.is_ready(), "Triton is not ready"
if gateway := os.environ.get("GATEWAY_URL"):
    with urllib.request.urlopen(f"{gateway}/health/ready", timeout=10) as answer:
        assert answer.status == 200, f"the gateway answered {answer.status}"
print("ready")
