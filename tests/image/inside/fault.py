"""Sends a signal to the process of a model, or to tritonserver itself. Runs in a container."""

import json
import os
import signal
import sys
from pathlib import Path

whose, name = sys.argv[1:]
if whose == "tritonserver":
    (pid,) = map(int, Path("/proc/1/task/1/children").read_text().split())
else:
    beats = [json.loads(path.read_text()) for path in Path("/dev/shm").glob("triton-chat-heartbeats-*/*.json")]
    (pid,) = (beat["pid"] for beat in beats if beat["model"] == whose)
os.kill(pid, signal.Signals[name])
sys.stdout.write(json.dumps(pid))
