"""One model over two machines, which are two processes here: a leader with an engine, and `triton-chat-server join`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from chat_engine.config import parse_config
from chat_engine.request import FinishReason
from chat_engine.serving import Serving, serve
from tests.chat_engine.builders import Inbox
from tests.vllm_engine.conftest import TINY
from tests.vllm_engine.started import lives, wait_for
from tests.vllm_engine.test_vllm_engine import PROMPTS, submit, told

ROOT = Path(__file__).parents[2]
ENDS_S = 60.0
ANSWERS_S = 120.0  # each token is an exchange between processes that share two cores
SHORT = {"temperature": 0, "max_tokens": 8}
LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 1900}


@dataclass
class Group:
    """The leader's engine, and the other machine."""

    leader: Serving
    worker: subprocess.Popen[bytes]
    log: Path
    has_ended: bool = False

    def end_leader(self) -> None:
        """Once."""
        if not self.has_ended:
            self.has_ended = True
            self.leader.engine.close()

    def close(self) -> None:
        self.end_leader()
        self.worker.kill()
        self.worker.wait()


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    block = {"nnodes": 2, "tensor_parallel_size": 2, "master_port": port, "enforce_eager": True}
    settings = {"model": str(TINY), "engine": "vllm", "dtype": "float32", "max_sequences": 8, "drain_seconds": 1.0}
    settings["vllm"] = block | {"kv_cache_memory_bytes": 1 << 28}
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(settings))
    log = tmp_path / "join.log"
    worker = join(file, log)
    try:
        leader = serve(parse_config(settings | {"device": "cpu"}), on_failure=lambda: None)
    except BaseException:
        worker.kill()
        raise
    made = Group(leader, worker, log)
    yield made
    made.close()


def join(settings: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "server"),
        "TRITON_CHAT_ENGINE_CONFIG": str(settings),
        "TRITON_CHAT_REPOSITORY": str(ROOT / "model_repository"),
        "LWS_LEADER_ADDRESS": "127.0.0.1",
        "LWS_WORKER_INDEX": "1",
    }
    with log.open("wb") as out:
        command = [sys.executable, "-m", "triton_chat_server", "join"]
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def ended(inbox: Inbox) -> Inbox:
    assert inbox.ended.wait(ANSWERS_S)
    return inbox


def test_two_machines_answer_as_one_and_the_other_stays_until_the_leader_has_drained(
    group: Group, native_serving: Serving
) -> None:
    asked = [submit(group.leader, prompt, **SHORT) for prompt in PROMPTS]
    for prompt, inbox in zip(PROMPTS, asked, strict=True):
        assert told(ended(inbox)) == told(ended(submit(native_serving, prompt, **SHORT))), prompt
    group.worker.send_signal(signal.SIGTERM)
    assert told(ended(submit(group.leader, PROMPTS[0], **SHORT)))["error"] is None
    assert group.worker.poll() is None
    children = psutil.Process(group.worker.pid).children(recursive=True)
    assert children
    group.end_leader()
    assert group.worker.wait(ENDS_S) == 0
    assert wait_for(lambda: not any(map(lives, children)), ENDS_S)  # Python's resource tracker ends last


def test_a_worker_of_the_other_machine_dies(group: Group) -> None:
    """That machine's part ends, for its restart; the leader tells its callers."""
    running = submit(group.leader, "Go on.", **LONG)
    children = psutil.Process(group.worker.pid).children()
    (worker,) = [child for child in children if "resource_tracker" not in str(child.cmdline())]
    worker.kill()
    assert group.worker.wait(ENDS_S) == 1
    assert "a worker has ended" in group.log.read_text()
    assert ended(running).last.finish_reason is FinishReason.ERROR
