"""A machine that computes for an engine on another one: vLLM's workers, without a server.

`python -m chat_engine.vllm.nodes MODEL LEADER RANK`, with the settings of the model as its server has them.
"""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from chat_engine.config import EngineConfig, load_config
from chat_engine.errors import ConfigError
from chat_engine.vllm import versions
from chat_engine.vllm.environment import prepare_process

log = logging.getLogger("join")

_POLL_SECONDS = 1.0
_TELL_SECONDS = 60
# A machine that has gone without a word is noticed after about 10 s.
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 4, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}
_CODE = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str]) -> int:
    """0 after SIGTERM or SIGINT, once the leader has ended. 1 after a line that says why."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    model, leader, rank = arguments
    stop = Stop()
    try:
        config = load_config(model, _CODE, {})
        engine = _engine(config, node_arguments(config, leader, int(rank)))
        port = engine.parallel_config.master_port
        return _compute(engine, (leader, port), stop)
    except (ConfigError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - a sentence for the operator
        return 1


def node_arguments(config: EngineConfig, leader: str, rank: int) -> dict[str, Any]:
    """What vLLM's arguments are here beside those of the leader. Raises ConfigError."""
    if config.engine != "vllm":
        raise ConfigError(f"engine: must be vllm (got {config.engine!r}): {config.engine} computes on one machine")
    nodes = config.vllm.get("nnodes", 1)
    if not isinstance(nodes, int) or nodes < 2:
        raise ConfigError(f"vllm.nnodes: must be the number of machines, at least 2 (got {nodes!r})")
    if not 0 < rank < nodes:
        raise ConfigError(f"rank: must be from 1 to {nodes - 1}, as vllm.nnodes is {nodes} (got {rank})")
    return {"node_rank": rank, "master_addr": leader}


class Stop:
    """Notes SIGTERM and SIGINT, which by themselves do not end what runs: its leader may have answers to finish."""

    def __init__(self) -> None:
        self.asked = False
        self._may_leave = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def stay(self) -> None:
        """From now on a signal is only noted."""
        self._may_leave = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        if self._may_leave:
            raise SystemExit(0)
        log.info("%s: it ends when its leader has", signal.Signals(number).name)


def _engine(config: EngineConfig, more: Mapping[str, Any]) -> Any:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError("engine: vllm is not installed in this Python")
    versions.check_version(versions.installed_version())
    prepare_process()
    from vllm.platforms import current_platform  # noqa: PLC0415 - takes seconds

    from chat_engine.vllm.adapters import Adapters  # noqa: PLC0415
    from chat_engine.vllm.loading import vllm_config_of  # noqa: PLC0415

    adapters = Adapters(config, on_cpu=current_platform.is_cpu())
    return vllm_config_of(config, adapters.arguments, headless=True, **more)


def _compute(engine: Any, leader: tuple[str, int], stop: Stop) -> int:
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # noqa: PLC0415

    with _connected(*leader) as line:
        log.info("the leader is there; loading")
        try:
            executor = MultiprocExecutor(engine, monitor_workers=False)
        except Exception as error:
            raise ConfigError("vLLM's workers could not load the model; their own lines in the log say why") from error
        try:
            stop.stay()
            log.info("loaded: computing for the leader")
            ended = _first_to_end([worker.proc.sentinel for worker in executor.workers], line)
        finally:
            executor.shutdown()
    if stop.asked:
        return 0
    log.error("%s has ended; ending this machine's part", ended)
    return 1


def _connected(host: str, port: int) -> socket.socket:
    """A connection to the leader's meeting point, on which nothing is said. It waits for the leader to open it."""
    waits = 0
    while True:
        with suppress(OSError):  # also while the name does not resolve yet
            line = socket.create_connection((host, port), timeout=_POLL_SECONDS)
            line.settimeout(None)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEP_ALIVE.items():
                line.setsockopt(socket.IPPROTO_TCP, option, value)
            return line
        if waits % _TELL_SECONDS == 0:
            log.info("waiting for the leader")
        waits += 1
        time.sleep(_POLL_SECONDS)


def _first_to_end(workers: Iterable[int], line: socket.socket) -> str:
    """Waits until a worker or the leader has ended. A signal does not end the wait."""
    while True:
        for ended in wait([*workers, line]):
            if ended is not line:
                return "a worker"
            if not _says_something(line):
                return "the leader"


def _says_something(line: socket.socket) -> bool:
    try:
        return bool(line.recv(4096))
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
