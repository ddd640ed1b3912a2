"""Real gRPC servers behind one name, whose addresses a test may change at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tritonclient.grpc import service_pb2 as pb

from tests.client.fake_server import FakeTriton, Received, fail
from triton_chat.channel import Target

NAME = "triton.test"
STOPPING = "Server is stopping, scheduler for model has stopped accepting new inference requests"
STALL = "stall"
_ROOT = Path(__file__).parents[2]
_PROGRAM = f"""
from tests.client.fake_server import FakeTriton, echo
triton = FakeTriton()
stalling = triton.stalls_after("word")
triton.reply = lambda received: (stalling if received.tensor("text_input") == [{STALL!r}] else echo)(received)
print(triton.url, flush=True)
input()
"""


def refuses(_: Received) -> Iterator[pb.ModelStreamInferResponse]:
    """What a server that stops says to new requests."""
    yield fail(STOPPING)


class Name:
    """A lookup for `Upstream`."""

    def __init__(self, *urls: str) -> None:
        self.urls: Sequence[str] = urls
        self.fails = False
        self.lookups = 0

    async def __call__(self) -> Sequence[Target]:
        self.lookups += 1
        if self.fails:
            raise OSError("nobody can say")
        return [Target(url, NAME, tls=False, authority=f"{NAME}:8001") for url in self.urls]


class Process:
    """A `FakeTriton` of its own process, for signals. It repeats prompts; after `STALL` it says one word."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)
        if number == signal.SIGSTOP:  # until then it may answer
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def stops(server: FakeTriton) -> None:
    """From now on it takes nothing new; what runs there goes on."""
    server.stopping = True
    server.reply = refuses
