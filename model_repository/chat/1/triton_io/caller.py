"""The way back to one caller."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import triton_python_backend_utils as pb_utils

from chat_engine.errors import ChatError
from triton_io.errors import to_triton

T = TypeVar("T")

log = logging.getLogger(__name__)


class Caller:
    """The way back to one caller, for several threads.

    It keeps to what crashes Triton otherwise: a sender is not used after its last response, and the tensors of a
    response live until it is sent. `send` drops those that the caller did not ask for, and of a tensor that nobody else
    holds it frees the array, which some versions (24.10) do without holding Python's lock.
    """

    def __init__(self, sender: pb_utils.InferenceResponseSender) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._ended = False

    def send(self, response: pb_utils.InferenceResponse, *, is_last: bool) -> None:
        """Sends a response; after the last one nothing is sent any more."""
        with self._lock:
            if self._ended:
                return
            self._ended = is_last
            tensors = response.output_tensors()
            self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_last else 0)
            del tensors  # not before: see above

    def fail(self, error: ChatError) -> None:
        """Ends the request with an error."""
        self.send(pb_utils.InferenceResponse(error=to_triton(error)), is_last=True)

    def is_cancelled(self) -> bool:
        """Whether the caller has cancelled a request that has not ended."""
        with self._lock:
            return not self._ended and bool(self._sender.is_cancelled())


def read(request: pb_utils.InferenceRequest, reader: Callable[[pb_utils.InferenceRequest, Caller], T]) -> T | None:
    """What a model makes of a request. None where it cannot be read, which its caller is told: the others go on."""
    caller = Caller(request.get_response_sender())
    try:
        return reader(request, caller)
    except Exception:
        log.exception("a request could not be read")
        caller.fail(ChatError("internal error: the request could not be read"))
        return None
