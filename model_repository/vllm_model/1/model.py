"""The Triton model `vllm_model`: `chat` as clients of Triton's vLLM backend know it.

Each request becomes one to `chat`. What is more than the threads can forward waits in this model's queue.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import triton_python_backend_utils as pb_utils
from triton_io import caller, forward, process
from triton_io.caller import Caller
from triton_io.heartbeat import Heartbeat

import vllm_contract
from chat_engine.errors import ChatError, EngineFailedError, InvalidArgumentError

log = process.log_of("vllm_model")

# Many streams between models can hang or end tritonserver 2.51; Triton 26.07 mends a deadlock there.
_REQUESTS_IN_FLIGHT = 16


class TritonPythonModel:
    """One instance: the threads that forward requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Takes the name of the chat model from the parameter `chat_model`."""
        config = json.loads(args["model_config"])
        self._target = config["parameters"]["chat_model"]["string_value"]
        self._pool = ThreadPoolExecutor(_REQUESTS_IN_FLIGHT, thread_name_prefix="request")
        self._places = threading.BoundedSemaphore(_REQUESTS_IN_FLIGHT)
        self._watch = forward.CancelWatch()
        self._heartbeat = Heartbeat(args["model_name"])

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Starts every request, waiting for a thread."""
        for request in requests:
            forwarded = caller.read(request, _Forwarded)
            if forwarded is None:
                continue
            self._places.acquire()
            self._watch.add(forwarded)
            self._pool.submit(self._run, forwarded)

    def finalize(self) -> None:
        """Waits for the requests that run."""
        try:
            self._pool.shutdown()
            self._watch.close()
        finally:
            self._heartbeat.close()

    def _run(self, forwarded: _Forwarded) -> None:
        try:
            forwarded.run(self._target)
        except InvalidArgumentError as error:
            forwarded.fail(error)
        except Exception:
            log.exception("a request could not be forwarded")
            forwarded.fail(ChatError("internal error"))
        finally:
            self._watch.discard(forwarded)
            self._places.release()


class _Forwarded:
    """One request: what was asked, the way back to its caller, and what `chat` sends."""

    def __init__(self, request: pb_utils.InferenceRequest, caller: Caller) -> None:
        self._caller = caller
        # Copied: the request's memory is Triton's again once `execute` has returned.
        self._tensors = {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}
        self._parameters = json.loads(request.parameters())
        self._to_chat: forward.Asked | None = None
        self._cancelled = False

    def run(self, target: str) -> None:
        """Forwards it and sends on what comes. Raises InvalidArgumentError."""
        asked = vllm_contract.read(self._tensors, self._parameters)
        self.cancel_if_wanted()
        if self._cancelled:
            self.fail(forward.cancelled())
            return
        answer = vllm_contract.Answer(asked)
        self._to_chat = forward.Asked(target, asked.inputs, {}, vllm_contract.CHAT_OUTPUTS)
        failure: ChatError | None = None
        # To the end, and the caller is told only then: tritonserver 2.51 hangs or ends when the request that has asked
        # another model is over before the other.
        for response in self._to_chat:
            if response.has_error():
                failure = failure or vllm_contract.in_its_words(forward.error_of(response))
            elif response.output_tensors():
                chat = {tensor.name(): tensor.as_numpy()[0, 0] for tensor in response.output_tensors()}
                failure = failure or forward.failure_in(chat["text_output"], chat["finish_reason"])
                if not (failure or self._cancelled):
                    self._send_on(answer.outputs(chat), is_last=bool(chat["finish_reason"]))
        self.fail(forward.cancelled() if self._cancelled else failure or EngineFailedError("the answer ended early"))

    def cancel_if_wanted(self) -> None:
        """For a caller who has cancelled: ends the request to `chat`, and with it this one."""
        self._cancelled = self._cancelled or self._caller.is_cancelled()
        if self._cancelled and self._to_chat is not None:
            self._to_chat.cancel()

    def fail(self, error: ChatError) -> None:
        """Ends the request with an error, unless it has ended."""
        self._caller.fail(error)

    def _send_on(self, outputs: Mapping[str, vllm_contract.Array], *, is_last: bool) -> None:
        tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items()]
        self._caller.send(pb_utils.InferenceResponse(tensors), is_last=is_last)
