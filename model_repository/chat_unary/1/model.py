"""The Triton model `chat_unary`: each row of a request becomes one request to `chat` (BLS), the answers one response.

The rows run side by side, so a request with many rows is as fast as `chat` batches them. Requests wait in this model's
queue while all threads are busy.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

log = logging.getLogger("chat_unary")

_ROWS_IN_FLIGHT = 64
_CANCEL_POLL_SECONDS = 0.1
_OUTPUTS = (
    "text_output",
    "finish_reason",
    "num_input_tokens",
    "num_output_tokens",
    "num_cached_tokens",
    "logprobs",
    "prompt_logprobs",
    "token_ids",
    "prompt_token_ids",
)
# How Triton's own queue says that it is full, or that a request has waited too long.
_REFUSALS = ("maximum queue size", "timeout expired")


class TritonPythonModel:
    """One instance: the threads that forward rows."""

    def initialize(self, args: dict[str, str]) -> None:
        """Takes the name of the chat model from the parameter `chat_model`."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
        config = json.loads(args["model_config"])
        self._target = config["parameters"]["chat_model"]["string_value"]
        self._pool = ThreadPoolExecutor(_ROWS_IN_FLIGHT, thread_name_prefix="row")
        self._places = threading.BoundedSemaphore(_ROWS_IN_FLIGHT)
        self._open: set[_Rows] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch_loop, name="cancel-watch", daemon=True)
        self._watcher.start()

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Starts every row, waiting for a thread; the last row to end answers."""
        for request in requests:
            rows = _Rows(request)
            with self._lock:
                self._open.add(rows)
            for index in range(rows.count):
                self._places.acquire()
                self._pool.submit(partial(self._run, rows, index))

    def finalize(self) -> None:
        """Waits for the rows that run."""
        self._pool.shutdown()
        self._closing.set()
        self._watcher.join()

    def _run(self, rows: _Rows, index: int) -> None:
        try:
            rows.run(index, self._target)
        except Exception:
            log.exception("a row could not be forwarded")
            rows.fail(index, pb_utils.TritonError("internal error", pb_utils.TritonError.INTERNAL))
        finally:
            self._places.release()
        if rows.ended(index):
            with self._lock:
                self._open.discard(rows)
            rows.answer()

    def _watch_loop(self) -> None:
        while not self._closing.wait(_CANCEL_POLL_SECONDS):
            with self._lock:
                open_rows = list(self._open)
            for rows in open_rows:
                rows.cancel_if_wanted()


class _Rows:
    """One request: its rows, what has come back for each, and the sender of the one response."""

    def __init__(self, request: pb_utils.InferenceRequest) -> None:
        self._sender = request.get_response_sender()
        self._sending = threading.Lock()
        self._answered = False
        # Copied: the request's memory is Triton's again once `execute` has returned.
        self._tensors = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
        self._parameters = json.loads(request.parameters())
        self.count = max((tensor.shape[0] for tensor in self._tensors.values()), default=1)
        self._left = set(range(self.count))
        self._results: list[list[pb_utils.Tensor]] = [[] for _ in range(self.count)]
        self._error: pb_utils.TritonError | None = None
        self._streams: dict[int, object] = {}
        self._cancelled = False
        self._lock = threading.Lock()

    def run(self, index: int, target: str) -> None:
        """Forwards one row and keeps its answer."""
        if self._cancelled:
            self.fail(index, pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED))
            return
        tensors = [
            pb_utils.Tensor(name, rows[index : index + 1]) for name, rows in self._tensors.items() if name != "stream"
        ]
        tensors.append(pb_utils.Tensor("stream", np.array([[False]])))
        parameters = {name: value for name, value in self._parameters.items() if name != "stream"}
        fractions = {name: parameters.pop(name) for name, value in self._parameters.items() if isinstance(value, float)}
        # Private to `chat`, see its chat_channel.py.
        parameters |= {"name_error_codes": True, "fractions": json.dumps(fractions)}
        request = pb_utils.InferenceRequest(
            model_name=target, inputs=tensors, requested_output_names=list(_OUTPUTS), parameters=parameters
        )
        responses = request.exec(decoupled=True)
        with self._lock:
            self._streams[index] = responses
        for response in responses:
            if response.has_error():
                self.fail(index, _with_code(response.error().message()))
            elif response.output_tensors():
                found = {tensor.name(): tensor for tensor in response.output_tensors()}
                self._results[index] = [found.get(name) or _nothing(name) for name in _OUTPUTS]

    def fail(self, index: int, error: pb_utils.TritonError) -> None:
        """The first row that fails decides the whole response: Triton allows one status per request."""
        with self._lock:
            if self._error is None:
                where = f"row {index}: " if self.count > 1 else ""
                self._error = pb_utils.TritonError(f"{where}{error.message()}", error.code())

    def ended(self, index: int) -> bool:
        """Notes the end of a row; True for the last one."""
        with self._lock:
            self._streams.pop(index, None)
            self._left.discard(index)
            return not self._left

    def cancel_if_wanted(self) -> None:
        """For a caller who has cancelled: stops rows that have not begun and, where Triton can, those that have."""
        with self._sending:  # a sender that is used after its response crashes Triton
            self._cancelled = self._cancelled or (not self._answered and self._sender.is_cancelled())
        if not self._cancelled:
            return
        with self._lock:
            streams = list(self._streams.values())
        for responses in streams:
            if hasattr(responses, "cancel"):
                responses.cancel()

    def answer(self) -> None:
        """Sends the one response."""
        if self._error is not None:
            response = pb_utils.InferenceResponse(error=self._error)
        else:
            columns = zip(*self._results, strict=True)
            response = pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(name, np.concatenate([tensor.as_numpy() for tensor in column]))
                    for name, column in zip(_OUTPUTS, columns, strict=True)
                ]
            )
        with self._sending:
            self._answered = True
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _nothing(name: str) -> pb_utils.Tensor:
    """In place of an output that `chat` leaves out where it is empty: the other rows may have it."""
    return pb_utils.Tensor(name, np.array([[b""]], dtype=np.object_))


def _with_code(message: str) -> pb_utils.TritonError:
    """An error of `chat` with its code, which Triton drops between models: `chat` names it in the message."""
    code, _, text = message.partition(": ")
    if code in ("INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"):
        return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    refused = any(words in message for words in _REFUSALS)
    return pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE if refused else pb_utils.TritonError.INTERNAL)
