"""The Triton model `chat_unary`: each row of a request becomes one request to `chat` (BLS), the answers one response.

The rows run side by side, so a request with many rows is as fast as `chat` batches them. Requests wait in this model's
queue while all threads are busy.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_io import caller, forward, process
from triton_io.caller import Caller
from triton_io.heartbeat import Heartbeat

from chat_engine.errors import ChatError

log = process.log_of("chat_unary")

_ROWS_IN_FLIGHT = 64
_OUTPUTS = (
    "text_output",
    "reasoning_output",
    "tool_calls",
    "finish_reason",
    "num_input_tokens",
    "num_output_tokens",
    "num_cached_tokens",
    "logprobs",
    "prompt_logprobs",
    "token_ids",
    "prompt_token_ids",
    "num_reasoning_tokens",
)
_NUM_REASONING = _OUTPUTS[-1]


class TritonPythonModel:
    """One instance: the threads that forward rows."""

    def initialize(self, args: dict[str, str]) -> None:
        """Takes the name of the chat model from the parameter `chat_model`."""
        config = json.loads(args["model_config"])
        self._target = config["parameters"]["chat_model"]["string_value"]
        self._pool = ThreadPoolExecutor(_ROWS_IN_FLIGHT, thread_name_prefix="row")
        self._places = threading.BoundedSemaphore(_ROWS_IN_FLIGHT)
        self._watch = forward.CancelWatch()
        self._heartbeat = Heartbeat(args["model_name"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Starts every row, waiting for a thread; the last row to end answers."""
        for request in requests:
            rows = caller.read(request, _Rows)
            if rows is None:
                continue
            self._watch.add(rows)
            for index in range(rows.count):
                self._places.acquire()
                self._pool.submit(partial(self._run, rows, index))

    def finalize(self) -> None:
        """Waits for the rows that run."""
        try:
            self._pool.shutdown()
            self._watch.close()
        finally:
            self._heartbeat.close()

    def _run(self, rows: _Rows, index: int) -> None:
        try:
            rows.run(index, self._target)
        except Exception:
            log.exception("a row could not be forwarded")
            rows.fail(index, ChatError("internal error"))
        finally:
            self._places.release()
        if rows.ended(index):
            self._watch.discard(rows)
            rows.answer()


class _Rows:
    """One request: its rows, what has come back for each, and the sender of the one response."""

    def __init__(self, request: pb_utils.InferenceRequest, caller: Caller) -> None:
        self._caller = caller
        # Copied: the request's memory is Triton's again once `execute` has returned.
        self._tensors = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
        self._parameters = json.loads(request.parameters())
        self.count = max((tensor.shape[0] for tensor in self._tensors.values()), default=1)
        self._left = set(range(self.count))
        self._results: list[list[pb_utils.Tensor]] = [[] for _ in range(self.count)]
        self._error: ChatError | None = None
        self._asked: dict[int, forward.Asked] = {}
        self._cancelled = False
        self._lock = threading.Lock()

    def run(self, index: int, target: str) -> None:
        """Forwards one row and keeps its answer."""
        if self._cancelled:
            self.fail(index, forward.cancelled())
            return
        inputs = {name: rows[index : index + 1] for name, rows in self._tensors.items()}
        inputs["stream"] = np.array([[False]])
        parameters = {**self._parameters, **self._stream_parameter()}
        asked = forward.Asked(target, inputs, parameters, _OUTPUTS)
        with self._lock:
            self._asked[index] = asked
        for response in asked:
            if response.has_error():
                self.fail(index, forward.error_of(response))
            elif response.output_tensors():
                found = {tensor.name(): tensor for tensor in response.output_tensors()}
                self._results[index] = [found.get(name) or _nothing(name) for name in _OUTPUTS]

    def _stream_parameter(self) -> dict[str, object]:
        """It has no effect here, but `chat` is to judge it, which takes no fraction for it as a sampling parameter."""
        given = self._parameters.get("stream")
        return {"stream": str(given)} if isinstance(given, float) else {}

    def fail(self, index: int, error: ChatError) -> None:
        """The first row that fails decides the whole response: Triton allows one status per request."""
        with self._lock:
            if self._error is None:
                self._error = error.in_row(index) if self.count > 1 else error

    def ended(self, index: int) -> bool:
        """Notes the end of a row; True for the last one."""
        with self._lock:
            self._asked.pop(index, None)
            self._left.discard(index)
            return not self._left

    def cancel_if_wanted(self) -> None:
        """For a caller who has cancelled: stops the rows, those that have begun and those that have not."""
        self._cancelled = self._cancelled or self._caller.is_cancelled()
        if not self._cancelled:
            return
        with self._lock:
            begun = list(self._asked.values())
        for asked in begun:
            asked.cancel()

    def answer(self) -> None:
        """Sends the one response."""
        if self._error is not None:
            self._caller.fail(self._error)
            return
        columns = zip(*self._results, strict=True)
        response = pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(name, np.concatenate([tensor.as_numpy() for tensor in column]))
                for name, column in zip(_OUTPUTS, columns, strict=True)
            ]
        )
        self._caller.send(response, is_last=True)


def _nothing(name: str) -> pb_utils.Tensor:
    """In place of an output that `chat` leaves out where it is empty: the other rows may have it."""
    if name == _NUM_REASONING:
        return pb_utils.Tensor(name, np.array([[0]], dtype=np.int32))
    return pb_utils.Tensor(name, np.array([[b""]], dtype=np.object_))
