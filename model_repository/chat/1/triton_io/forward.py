"""What a model needs that passes requests on to `chat` (BLS): `chat_unary` and `vllm_model`.

Nothing of the engine but its errors is imported here, so those models start at once and stay small.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from chat_engine.errors import ChatError, EngineFailedError, RequestCancelledError, from_wire
from triton_io import abandoned
from triton_io.errors import from_triton

Array = np.ndarray[Any, Any]

_SAMPLING = "sampling_parameters"
_CANCEL_POLL_SECONDS = 0.1


class Watched(Protocol):
    """A request whose caller may leave."""

    def cancel_if_wanted(self) -> None:
        """Asks the caller, and stops what can be stopped."""


class CancelWatch:
    """A thread that looks who has cancelled: Triton tells only those who ask."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cancel-watch", daemon=True)
        self._thread.start()

    def add(self, request: Watched) -> None:
        """From now on."""
        with self._lock:
            self._watched.add(request)

    def discard(self, request: Watched) -> None:
        """No longer; it may be asked once more."""
        with self._lock:
            self._watched.discard(request)

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(_CANCEL_POLL_SECONDS):
            with self._lock:
                watched = list(self._watched)
            for request in watched:
                request.cancel_if_wanted()


class Asked:
    """A request to `chat`. It is sent when its responses are read, which must be done to the end, also after `cancel`.

    Errors among the responses are for `error_of`. Any thread may call `cancel`.
    """

    def __init__(
        self, target: str, inputs: Mapping[str, Array], parameters: Mapping[str, object], outputs: Sequence[str]
    ) -> None:
        fractions = {name: value for name, value in parameters.items() if isinstance(value, float)}
        self._name = abandoned.new_name()
        self._request = pb_utils.InferenceRequest(
            request_id=self._name,
            model_name=target,
            inputs=[pb_utils.Tensor(name, value) for name, value in with_fractions(inputs, fractions).items()],
            requested_output_names=list(outputs),
            parameters={name: value for name, value in parameters.items() if name not in fractions},
        )
        self._responses: Iterable[pb_utils.InferenceResponse] = ()
        self._lock = threading.Lock()
        self._noted = self._over = False

    def __iter__(self) -> Iterator[pb_utils.InferenceResponse]:
        try:
            self._responses = self._request.exec(decoupled=True)  # it waits for the first response
            yield from self._responses
        finally:
            with self._lock:
                self._over = True
                if self._noted:
                    abandoned.forget(self._name)

    def cancel(self) -> None:
        """Ends the request soon: by Triton where it can (25.04 and later), and by a note to `chat`."""
        with self._lock:
            if not (self._over or self._noted):
                self._noted = True
                abandoned.note(self._name)
        if hasattr(self._responses, "cancel"):
            self._responses.cancel()


def with_fractions(inputs: Mapping[str, Array], fractions: Mapping[str, float]) -> Mapping[str, Array]:
    """Between models Triton takes no parameter that is a fraction, so those travel in `sampling_parameters`.

    As everywhere, what stands there already wins. What is no JSON object stays as it is, and `chat` refuses it.
    """
    if not fractions:
        return inputs
    try:
        given = json.loads(inputs[_SAMPLING].item()) if _SAMPLING in inputs else {}
    except (ValueError, RecursionError):
        return inputs
    if not isinstance(given, dict):
        return inputs
    return {**inputs, _SAMPLING: np.array([[json.dumps({**fractions, **given}).encode()]], np.object_)}


def cancelled() -> RequestCancelledError:
    return RequestCancelledError("the request was cancelled")


def failure_in(text_output: bytes, finish_reason: bytes) -> ChatError | None:
    """What has gone wrong in `chat` after its first response: the text says it, where the reason is one of these."""
    if finish_reason not in (b"error", b"cancelled"):
        return None
    return from_wire(text_output.decode()) or EngineFailedError("the answer ended early")


def error_of(response: pb_utils.InferenceResponse) -> ChatError:
    """What has gone wrong in `chat`."""
    return from_triton(response.error())
