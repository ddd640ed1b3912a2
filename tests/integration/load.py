"""What a server and its gateway are put through, so that every metric of theirs moves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from openai import OpenAI

from local.gateway import LocalGateway
from local.triton import LocalTriton
from tests.integration.calls import CALL_S, Stream, connect, eventually, request, settled, stub_of
from tests.integration.openai_calls import options
from tests.integration.prometheus import Prometheus
from tests.integration.servers import REPOSITORY, changed_copy
from tests.integration.test_engine_failure import BROKEN_RUNNER
from tests.monitoring.chart import alerts

ENGINE = {
    "stall_seconds": 60.0,
    "threads": 1,
    "max_sequences": 4,
    "max_model_len": 1024,
    "kv_cache_tokens": 1280,
    "max_step_tokens": 64,
}
FULL = {"max_tokens": 1000, "ignore_eos": True, "temperature": 0}
"""Four of these do not fit into the KV cache."""

LIMITS = {"max_queue_size: 256": "max_queue_size: 2"}
GATE = """

import threading

_run_when_open = ModelRunner.start


def _run_at_the_gate(self, rows):
    while pathlib.Path(os.environ["WAIT_WHILE_THERE"]).exists():
        threading.Event().wait(0.02)
    return _run_when_open(self, rows)


ModelRunner.start = _run_at_the_gate
_stop_server = lambda: None


class Heartbeat:
    def __init__(self, *_):
        pass

    def close(self):
        pass
"""
"""Steps wait while a file is there, so that what runs then goes on running. The server outlives its engine, and its
supervisor does not watch it, so that Prometheus can read what a failure did to the metrics."""


def fragile(folder: Path) -> Path:
    """The repository, with a short queue, and an engine that waits or fails when it is told to."""
    changed_copy(REPOSITORY, folder, {"chat": LIMITS})
    with (folder / "chat" / "1" / "model.py").open("a") as model:
        model.write(BROKEN_RUNNER + GATE)
    return folder


class Load:
    """What the server and the gateway are put through, step by step."""

    def __init__(self, triton: LocalTriton, gateway: LocalGateway, seen: Prometheus) -> None:
        self._triton, self._gateway, self._prometheus = triton, gateway, seen

    def short_requests(self) -> None:
        """One prompt of several blocks again and again, texts, and a request that is refused."""
        prompt = "one two three four five six seven eight nine ten " * 3
        with OpenAI(**options(self._gateway)) as client:
            self._post_seen(200, prompt=prompt, max_tokens=3)
            for _ in range(25):
                client.completions.create(model="chat", prompt=prompt, max_tokens=3)
            client.embeddings.create(model="embeddings", input=["a cat", "a kitten"])
        assert self._post("/tokenize", prompt="a cat") == 200
        assert self._post("/v1/completions", prompt="a", max_tokens=-1) == 400

    def more_than_fits(self) -> None:
        """Sequences until the KV cache is full and some are put back; then all callers leave."""
        with connect(self._triton) as stub:
            streams = [Stream(stub, request(text_input=str(n), sampling_parameters=FULL)) for n in range(4)]
            self._sees("triton_chat_preemptions_total > 0")
            for stream in streams:
                stream.cancel()
        settled(self._triton)

    def full_house(self, gate: Path) -> None:
        """All places are taken and the queue is full: some wait too long, and more are refused."""
        with connect(self._triton) as stub, self._stream("/v1/completions", prompt="Once", **FULL):
            streams = [Stream(stub, request(text_input=str(n), sampling_parameters=FULL)).started() for n in range(3)]
            gate.touch()
            self._sees("triton_chat_requests_running > 1")
            self._sees("triton_chat_gateway_open_streams > 0")
            self._sees(expression("TritonChatEngineStuck").replace("> 60", "> 2"))
            streams.append(Stream(stub, request(text_input="Once", sampling_parameters=FULL)))  # until there is a place
            impatient = [Stream(stub, request(text_input="Once", timeout_s=0.2)) for _ in range(2)]
            self._sees('nv_inference_request_failure{model="chat", reason="REJECTED"} > 0')
            streams += [Stream(stub, request(text_input="Once", sampling_parameters=FULL)) for _ in range(14)]
            self._sees('nv_inference_pending_request_count{model="chat"} == 2')
            self._post_seen(429, prompt="Once")
            assert self._post("/v1/completions", prompt="Once") == 429
            gate.unlink()
            for stream in streams:
                stream.cancel()
            assert "Request timeout expired" in {stream.wait().error for stream in impatient}
        settled(self._triton)

    def failure(self, trigger: Path) -> None:
        """The engine fails while sequences run; from then on the gateway answers with 503."""
        with connect(self._triton) as stub:
            streams = [Stream(stub, request(text_input="Once", sampling_parameters=FULL)).started() for _ in range(4)]
            trigger.touch()
            assert all("the engine failed" in stream.wait(10).error for stream in streams)
        self._post_seen(503, prompt="a")
        assert [self._post("/v1/completions", prompt="a") for _ in range(20)] == [503] * 20
        self._sees('triton_chat_requests_total{finish_reason="error"} == 4')
        self._sees('triton_chat_gateway_requests_total{status="503"} == 21')

    def death(self) -> None:
        """The model's process dies; Triton goes on as if nothing had happened."""
        os.kill(stub_of(self._triton, "chat"), signal.SIGKILL)
        self._sees(expression("TritonChatModelSilent").replace("> 60", "> 2"))

    @contextmanager
    def _stream(self, path: str, **fields: object) -> Iterator[None]:
        """While the block lasts, and the answer."""
        body = {"model": "chat", "stream": True, **fields}
        with httpx2.stream("POST", self._gateway.url + path, json=body, timeout=CALL_S) as answer:
            assert answer.status_code == 200
            yield

    def _post_seen(self, status: int, **fields: object) -> None:
        """The first with this status, until Prometheus has seen it: it cannot know that a new counter began at 0."""
        assert self._post("/v1/completions", **fields) == status
        self._sees(f'triton_chat_gateway_requests_total{{route="/v1/completions", status="{status}"}} == 1')

    def _post(self, path: str, **fields: object) -> int:
        return httpx2.post(self._gateway.url + path, json={"model": "chat", **fields}, timeout=CALL_S).status_code

    def _sees(self, expression: str) -> None:
        eventually(lambda: self._prometheus.query(expression), within=30)


def expression(alert: str) -> str:
    (found,) = [rule["expr"] for rule in alerts() if rule["alert"] == alert]
    return str(found)
