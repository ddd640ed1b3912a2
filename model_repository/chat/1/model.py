"""The Triton model `chat`: tensors to a `ChatRequest`, `TokenEvent`s to responses. The engine is in `chat_engine`."""

from __future__ import annotations

import json
import locale
import logging
import os
import signal
import sys
import uuid
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# The stub starts Python under the C locale, in which torch and tokenizers cannot read UTF-8 files.
locale.setlocale(locale.LC_CTYPE, "C.UTF-8")

from chat_engine import errors  # noqa: E402
from chat_engine.config import load_config  # noqa: E402
from chat_engine.delivery import Delivery  # noqa: E402
from chat_engine.engine import ChatEngine  # noqa: E402
from chat_engine.metrics import Family, MetricsReporter  # noqa: E402
from chat_engine.model_runner import ModelRunner  # noqa: E402
from chat_engine.parse import SWITCHES, RequestParser, WireRequest  # noqa: E402
from chat_engine.prompt import PromptEncoder  # noqa: E402
from chat_engine.request import TokenEvent, TokenLogprobs  # noqa: E402

log = logging.getLogger("chat")

_ROOM_POLL_SECONDS = 0.1
# By name: the stub adds its classes to `pb_utils` only after this module is imported.
_CODES = {
    errors.InvalidRequestError: "INVALID_ARG",
    errors.OverloadedError: "UNAVAILABLE",
    errors.RequestCancelledError: "CANCELLED",
    errors.EngineFailedError: "INTERNAL",
}
_KINDS = {"counter": "COUNTER", "gauge": "GAUGE", "histogram": "HISTOGRAM"}


class TritonPythonModel:
    """One instance of the model: an engine, its senders and its metrics."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model, which also tries it out. Raises ConfigError or UnsupportedModelError."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
        version_folder = Path(__file__).resolve().parent
        name = args["model_name"]
        config = load_config(name, version_folder, {"device": _device(args)})
        runner = ModelRunner(config)
        prompts = PromptEncoder.load(config)
        self._drain_seconds = config.drain_seconds
        self._parser = RequestParser(
            prompts, config, runner.limits.max_model_len, runner.limits.vocab_size, runner.sampling_defaults
        )
        self._engine = ChatEngine(config, runner, prompts.backend, on_failure=_stop_server)
        self._delivery = Delivery(self._engine.cancel)
        self._families: dict[str, pb_utils.MetricFamily] = {}
        self._metrics = MetricsReporter(self._engine.stats, self._metric, name)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Admits the requests one after the other, waiting for room: the backlog stays in Triton's queue."""
        for request in requests:
            channel = _Channel(request.get_response_sender())
            try:
                self._admit(request, channel)
            except errors.ChatError as error:
                channel.fail(error)
            except Exception:  # the other requests of the group must not suffer
                log.exception("a request could not be admitted")
                channel.fail(errors.EngineFailedError("the request could not be admitted: internal error"))

    def is_ready(self) -> bool:
        """Asked by Triton 25.12 and later."""
        return self._engine.is_ready()

    def finalize(self) -> None:
        """Lets running answers end within the drain time, then stops."""
        self._engine.drain(self._drain_seconds)
        self._engine.close()
        self._delivery.close()
        self._metrics.close()

    def _admit(self, request: pb_utils.InferenceRequest, channel: _Channel) -> None:
        parsed = self._parser.parse(_wire_request(request))
        while not self._engine.wait_for_room(_ROOM_POLL_SECONDS):
            if channel.is_cancelled():
                raise errors.RequestCancelledError("the request was cancelled while it waited")
        mailbox = self._delivery.open(parsed.id, channel, parsed.stream)
        try:
            self._engine.submit(parsed, mailbox.put)
        except errors.ChatError:
            self._delivery.discard(mailbox)
            raise

    def _metric(self, family: Family, labels: dict[str, str]) -> pb_utils.Metric:
        if family.name not in self._families:
            kind = getattr(pb_utils.MetricFamily, _KINDS[family.kind])
            self._families[family.name] = pb_utils.MetricFamily(name=family.name, description=family.help, kind=kind)
        buckets = {"buckets": list(family.buckets)} if family.buckets else {}
        return self._families[family.name].Metric(labels=labels, **buckets)


class _Channel:
    """The response sender of one request."""

    def __init__(self, sender: pb_utils.InferenceResponseSender) -> None:
        self._sender = sender

    def send(self, event: TokenEvent) -> None:
        if event.error is not None:
            self.fail(event.error)
            return
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if event.finish_reason else 0
        self._sender.send(pb_utils.InferenceResponse(output_tensors=_tensors(event)), flags=final)

    def fail(self, error: errors.ChatError) -> None:
        code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
        error_of_triton = pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, code))
        response = pb_utils.InferenceResponse(error=error_of_triton)
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


def _wire_request(request: pb_utils.InferenceRequest) -> WireRequest:
    tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    for name, tensor in tensors.items():
        if tensor.size != 1:
            shape = "x".join(map(str, tensor.shape))
            raise errors.InvalidRequestError(
                f"{name}: shape {shape}; one conversation a request, so shape 1x1 (chat_unary takes several rows)"
            )
    values = {name: tensor.reshape(-1)[0] for name, tensor in tensors.items()}
    values |= {name: bool(values[name]) for name in SWITCHES if name in values}
    return WireRequest(id=uuid.uuid4().hex, parameters=json.loads(request.parameters()), **values)


def _tensors(event: TokenEvent) -> list[pb_utils.Tensor]:
    reason = event.finish_reason.value if event.finish_reason else ""
    return [
        _text("text_output", event.text),
        _text("finish_reason", reason),
        _count("num_input_tokens", event.num_input_tokens),
        _count("num_output_tokens", event.num_output_tokens),
        _count("num_cached_tokens", event.num_cached_tokens),
        _text("logprobs", json.dumps([_logprobs(entry) for entry in event.logprobs]) if event.logprobs else ""),
    ]


def _text(name: str, text: str) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([[text.encode()]], dtype=np.object_))


def _count(name: str, count: int) -> pb_utils.Tensor:
    return pb_utils.Tensor(name, np.array([[count]], dtype=np.int32))


def _logprobs(entry: TokenLogprobs) -> dict[str, object]:
    """OpenAI's shape."""
    chosen, *top = (
        {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}
        for token in (entry.chosen, *entry.top)
    )
    return {**chosen, "top_logprobs": top}


def _device(args: dict[str, str]) -> str:
    return f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"


def _stop_server() -> None:
    """The engine is broken for good: ends the server, so that whoever watches it starts it anew."""
    os.kill(os.getppid(), signal.SIGTERM)
