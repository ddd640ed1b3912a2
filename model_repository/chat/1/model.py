"""The Triton model `chat`: tensors to a `ChatRequest`, `TokenEvent`s to responses. The engine is in `chat_engine`."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils
from batcher_waker import BatcherWaker
from triton_channel import TritonChannel, wire_request
from triton_io import process
from triton_io.heartbeat import Heartbeat

from chat_engine import errors
from chat_engine.config import load_config
from chat_engine.service.admission import Admission, QueueLimit
from chat_engine.service.delivery import Delivery, ReaderLimits
from chat_engine.service.metrics import Family, MetricsReporter
from chat_engine.service.shutdown import ShutdownWatch
from chat_engine.service.stall import StallWatch
from chat_engine.serving import serve

log = process.log_of("chat")

_KINDS = {"counter": "COUNTER", "gauge": "GAUGE", "histogram": "HISTOGRAM"}


class TritonPythonModel:
    """One instance of the model: an engine, its senders and its metrics."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model, which also tries it out. Raises ConfigError or UnsupportedModelError."""
        name = args["model_name"]
        config = load_config(name, Path(__file__).resolve().parent, {"device": _device(args)})
        serving = serve(config, on_failure=_stop_server)
        self._parser, self._engine = serving.parser, serving.engine
        self._drain_seconds = serving.drain_seconds
        self._admission = Admission(self._engine)
        self._queue_limit = QueueLimit.of(json.loads(args["model_config"]))
        limits = ReaderLimits(config.max_pending_bytes, config.slow_reader_seconds)
        self._delivery = Delivery(self._admission.cancel, limits=limits)
        self._families: dict[str, pb_utils.MetricFamily] = {}
        self._metrics = MetricsReporter(
            self._admission.stats, self._metric, name, works=lambda: self._complaint() is None
        )
        self._executing = threading.Lock()
        self._watch = ShutdownWatch(_SERVER, self._drain)
        self._waker = BatcherWaker(name, self._executing.locked, self._engine.wait_for_room, self._watch.sees_a_stop)
        self._stall_watch = StallWatch(self._engine.complaint, self._engine.note_pause, self._give_up)
        self._drained = threading.Event()
        self._heartbeat = Heartbeat(name, self._complaint, self._drained.is_set)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Admits the requests one after the other, waiting for room: the backlog stays in Triton's queue."""
        self._watch.start()
        with self._executing:
            requests = self._waker.without_own(requests)
            for request in requests:
                channel = TritonChannel(request)
                try:
                    self._take(request, channel)
                except errors.ChatError as error:
                    channel.fail(error)
                except Exception:  # the other requests of the group must not suffer
                    log.exception("a request could not be read")
                    channel.fail(errors.EngineFailedError("the request could not be read: internal error"))
            self._admission.clear()
        if requests:
            self._waker.wake_soon()

    def is_ready(self) -> bool:
        """Asked by Triton 25.12 and later."""
        return self._engine.is_ready() and self._complaint() is None

    def finalize(self) -> None:
        """Called once nothing is in flight any more."""
        try:
            self._waker.close()
            self._watch.close()
            self._drain()
            self._stall_watch.close()
            self._delivery.close()
            self._metrics.close()
            self._families.clear()  # at the end of Python it would be too late: the process would crash
        finally:
            self._heartbeat.close()

    def _complaint(self) -> str | None:
        """Why the model does not work, if it does not."""
        stuck = "Triton has not taken a response for some seconds" if self._delivery.is_stuck() else None
        return self._engine.complaint() or stuck

    def _give_up(self, why: str) -> None:
        """The engine's own thread is stuck, so its callers are told without it."""
        log.error("%s; the server ends", why)
        self._engine.give_up()
        self._delivery.fail_all(errors.EngineFailedError("the engine makes no progress; it is restarting"))
        _stop_server()

    def _drain(self) -> None:
        """Lets running answers end within the drain time, ends the others with an error, and takes nothing new."""
        self._engine.drain(self._drain_seconds)
        self._engine.close()
        self._drained.set()

    def _take(self, request: pb_utils.InferenceRequest, channel: TritonChannel) -> None:
        parsed = self._parser.parse(wire_request(request))
        mailbox = self._delivery.open(parsed.id, channel, parsed.stream, len(parsed.prompt_ids))
        self._admission.take(parsed, mailbox, self._queue_limit.of_request(request.timeout()))

    def _metric(self, family: Family, labels: dict[str, str]) -> pb_utils.Metric:
        if family.name not in self._families:
            kind = getattr(pb_utils.MetricFamily, _KINDS[family.kind])
            self._families[family.name] = pb_utils.MetricFamily(name=family.name, description=family.help, kind=kind)
        buckets = {"buckets": list(family.buckets)} if family.buckets else {}
        return self._families[family.name].Metric(labels=labels, **buckets)


def _device(args: dict[str, str]) -> str:
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"


_SERVER = os.getppid()  # later it may be another process, if the server has died


def _stop_server() -> None:
    """The engine is broken for good: ends the server, so that whoever watches it starts it anew."""
    os.kill(_SERVER, signal.SIGTERM)
