"""What the processes of the stack hold: to be the same before a fault and after it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kept_stack import KeptStack
from tests.integration.calls import settled, stubs_of


@dataclass(frozen=True)
class Usage:
    """Of all processes together, but for the memory, which is that of each."""

    descriptors: int
    threads: int
    regions: int
    rss_mb: dict[str, float]
    sequences: float
    blocks: float

    def grown_since(self, before: Usage) -> dict[str, float]:
        """What is more than before, and more than a pool that was not full yet explains."""
        more = {
            "descriptors": self.descriptors - before.descriptors - _MORE_DESCRIPTORS,
            "threads": self.threads - before.threads - _MORE_THREADS,
            "regions": self.regions - before.regions,
            "sequences": self.sequences,
            "blocks": self.blocks,
            **{f"MB of {who}": mb - before.rss_mb[who] - _MORE_MB for who, mb in self.rss_mb.items()},
        }
        return {name: value for name, value in more.items() if value > 0}


_MORE_DESCRIPTORS = 16
_MORE_THREADS = 16
_MORE_MB = 150.0
"""What a process may grow by: pools of threads and of memory fill up to their size and stay there."""


def usage(stack: KeptStack) -> Usage:
    """Now; the engine has nothing left to do."""
    metrics = settled(stack.triton)
    processes = {
        "gateway": stack.gateway.pid,
        "tritonserver": stack.triton.server_pid,
        **{f"model {_model(pid)}": pid for pid in stubs_of(stack.triton)},
    }
    return Usage(
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes.values()),
        threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in processes.values()),
        regions=len(list(Path("/dev/shm").glob(stack.triton._shm_prefix + "*"))),
        rss_mb={who: _rss_mb(pid) for who, pid in processes.items()},
        sequences=metrics("triton_chat_requests_running") + metrics("triton_chat_requests_waiting"),
        blocks=metrics("triton_chat_kv_cache_usage_ratio"),
    )


def back_to(before: Usage, stack: KeptStack, within: float = 30.0) -> Usage:
    """Waits until nothing has grown: connections take a moment to be closed."""
    deadline = time.monotonic() + within
    while True:
        now = usage(stack)
        grown = now.grown_since(before)
        if not grown:
            return now
        assert time.monotonic() < deadline, grown


def _model(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next(Path(word.decode()).parent.parent.name for word in words if word.endswith(b"/model.py"))


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.split("VmRSS:")[1].split()[0]) / 1024
