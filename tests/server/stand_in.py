"""In the place of tritonserver: a process with a child that sends heartbeats, each of which does as a file says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType


def model(folder: Path, told: Path) -> None:
    """Sends heartbeats; the file `told` may hold a complaint."""
    beats = 0
    path = folder / f"{os.getpid()}.json"
    while True:
        beats += 1
        complaint = (told / "complaint").read_text() if (told / "complaint").exists() else ""
        fresh = path.with_suffix(".new")
        beat = {"model": "m", "pid": os.getpid(), "beats": beats, "complaint": complaint}
        fresh.write_text(json.dumps({**beat, "finished": (told / "finish").exists()}))
        fresh.replace(path)
        time.sleep(0.05)


def server(folder: Path, told: Path) -> None:
    """Writes down its process ids and the signals that reach it; SIGTERM ends it as `told` has it."""
    child = subprocess.Popen([sys.executable, __file__, "model", str(folder), str(told)])

    def note(number: int, frame: FrameType | None) -> None:
        with (told / "signals").open("a") as notes:
            notes.write(signal.Signals(number).name + "\n")
        if number == signal.SIGTERM and not ((told / "stubborn").exists() or (told / "finish").exists()):
            if (told / "unload").exists():
                child.kill()
                (folder / f"{child.pid}.json").unlink()
            else:
                os._exit(int((told / "code").read_text()) if (told / "code").exists() else 0)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, note)
    while not (folder / f"{child.pid}.json").exists():
        time.sleep(0.01)
    fresh = told / "pids.new"
    fresh.write_text(f"{os.getpid()} {child.pid}")
    fresh.replace(told / "pids")
    while True:
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "model":
        model(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        server(Path(os.environ["TRITON_CHAT_HEARTBEATS"]), Path(os.environ["TOLD"]))
