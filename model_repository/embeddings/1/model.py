"""The Triton model `embeddings`: tensors to requests, vectors to responses. The work is done in `embedder`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_io import process
from triton_io.errors import to_triton
from triton_io.heartbeat import Heartbeat

from chat_engine.errors import ChatError, NotComputedError
from chat_engine.service.stall import InHand
from embedder.config import load_config
from embedder.parse import WireRequest
from embedder.service import Answer, EmbeddingService

log = process.log_of("embeddings")

_SERVER = os.getppid()  # later it may be another process, if the server has died
_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


class TritonPythonModel:
    """One instance of the model. Triton loads and calls it on one thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model, which also tries it out. Raises ConfigError or UnsupportedModelError."""
        config = load_config(Path(__file__).resolve().parent, {"device": _device(args)})
        self._service = EmbeddingService(config)
        self._metrics = _Metrics(args["model_name"])
        self._broken = False
        self._in_hand = InHand()
        self._heartbeat = Heartbeat(args["model_name"], self._in_hand.complaint, self._in_hand.is_empty)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """One response for each request, in their order."""
        began = time.monotonic()
        with self._in_hand.work():
            answers = self._service.answer([_read(request) for request in requests])
        if any(isinstance(answer, NotComputedError) for answer in answers) and not self._service.works():
            self._stop_server()
        self._metrics.report([answer for answer in answers if isinstance(answer, Answer)], time.monotonic() - began)
        return [_response(answer) for answer in answers]

    def is_ready(self) -> bool:
        """Asked by Triton 25.12 and later."""
        return not self._broken

    def finalize(self) -> None:
        """Called once nothing is in flight any more."""
        try:
            self._service.close()
            del self._metrics  # at the end of Python it would be too late: the process would crash
        finally:
            self._heartbeat.close()

    def _stop_server(self) -> None:
        """The model computes nothing any more: ends the server, so that whoever watches it starts it anew."""
        self._broken = True
        os.kill(_SERVER, signal.SIGTERM)


class _Metrics:
    """What is counted, a few calls a batch: a call into Triton costs as much as some tokens."""

    def __init__(self, model: str) -> None:
        counter, histogram = pb_utils.MetricFamily.COUNTER, pb_utils.MetricFamily.HISTOGRAM
        labels = {"model": model}
        self._families = [
            pb_utils.MetricFamily(name=f"triton_chat_embeddings_{name}", description=description, kind=kind)
            for name, description, kind in (
                ("texts_total", "Texts turned into vectors", counter),
                ("tokens_total", "Tokens of these texts, special ones included", counter),
                ("batch_duration_seconds", "From Triton's queue to the vectors, of one batch", histogram),
            )
        ]
        texts, tokens, durations = self._families
        self._texts, self._tokens = texts.Metric(labels=labels), tokens.Metric(labels=labels)
        self._durations = durations.Metric(labels=labels, buckets=_BUCKETS)

    def report(self, answers: list[Answer], seconds: float) -> None:
        """Counts what became vectors; metrics that Triton does not take must not end the batch."""
        counts = [count for answer in answers for count in answer.num_tokens]
        if not counts:
            return
        try:
            self._texts.increment(len(counts))
            self._tokens.increment(sum(counts))
            self._durations.observe(seconds)
        except Exception:
            log.exception("the metrics could not be reported")


def _device(args: dict[str, str]) -> str:
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"


def _read(request: pb_utils.InferenceRequest) -> WireRequest | ChatError:
    try:
        columns = {tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}
        return WireRequest(parameters=json.loads(request.parameters()), **columns)
    except Exception:  # the other requests of the batch must not suffer
        log.exception("a request could not be read")
        return ChatError("internal error: the request could not be read")


def _response(answer: Answer | ChatError) -> pb_utils.InferenceResponse:
    if isinstance(answer, ChatError):
        return pb_utils.InferenceResponse(error=to_triton(answer))
    return pb_utils.InferenceResponse(
        output_tensors=[
            pb_utils.Tensor("embedding", answer.embeddings),
            pb_utils.Tensor("num_tokens", np.array(answer.num_tokens, dtype=np.int32)[:, None]),
        ]
    )
