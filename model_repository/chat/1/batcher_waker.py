"""Wakes Triton's dynamic batcher, which may sleep while requests wait in its queue."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from time import sleep

import numpy as np
import triton_python_backend_utils as pb_utils

_PARAMETER = "triton_chat_wake"
_SOON_S = 0.001
_ROOM_S = 0.1


class BatcherWaker:
    """Sends the model a request of its own after each group that `execute` has taken.

    A request that arrives while `execute` runs does not wake the batcher, if its queue was empty until then: it looks
    again after half a second, or when the next request comes (tritonserver 2.51, `DynamicBatchScheduler::Enqueue`).
    This is that next request. It counts as one in Triton's statistics.

    Args:
        model: the name of this one.
        is_busy: whether `execute` runs; when it ends, the next call is due.
        wait_for_room: for so many seconds, until the engine has some; without, the request would stand in the queue.
        is_stopping: whether the server stops, when it must not be asked for anything.
    """

    def __init__(
        self,
        model: str,
        is_busy: Callable[[], bool],
        wait_for_room: Callable[[float], bool],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._model = model
        self._is_busy = is_busy
        self._wait_for_room = wait_for_room
        self._is_stopping = is_stopping
        self._secret = secrets.token_hex(8)  # from others, the parameter means nothing
        self._due = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def without_own(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceRequest]:
        """Those that are not its own; these are answered."""
        own = [request for request in requests if self._secret in (request.parameters() or "")]
        for request in own:
            request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return [request for request in requests if request not in own]

    def wake_soon(self) -> None:
        """Does not wait; several calls may become one request."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="batcher-waker", daemon=True)
            self._thread.start()
        self._due.set()

    def close(self) -> None:
        """Sends nothing any more."""
        self._closed = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            sleep(_SOON_S)  # until Triton has the instance back
            while not (self._closed or self._is_busy() or self._wait_for_room(_ROOM_S)):
                pass
            if self._closed:
                return
            if not self._is_busy() and not self._is_stopping():
                self._send()

    def _send(self) -> None:
        text = pb_utils.Tensor("text_input", np.array([[b""]], dtype=np.object_))
        request = pb_utils.InferenceRequest(
            model_name=self._model, inputs=[text], requested_output_names=[], parameters={_PARAMETER: self._secret}
        )
        with suppress(pb_utils.TritonModelException):  # a queue that is full, or a server that has begun to stop
            for _ in request.exec(decoupled=True):
                pass
