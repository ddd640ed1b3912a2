"""Runs in a container of Triton: sends a signal to the process of one model and tells its id."""

import json
import os
import signal
import sys
from pathlib import Path

model, name = sys.argv[1:]
for entry in Path("/proc").glob("[0-9]*"):
    try:
        command = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        continue
    if command[0].endswith(b"triton_python_backend_stub") and f"/{model}/".encode() in command[1]:
        os.kill(int(entry.name), getattr(signal, name))
        sys.stdout.write(json.dumps(int(entry.name)) + "\n")
