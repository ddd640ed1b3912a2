"""What a model needs that passes requests on to `chat` (BLS): `chat_unary` and `vllm_model`.

Nothing of the engine is imported here, so those models start at once and stay small.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

# A request parameter that asks `chat` for the code inside the message: between models Triton keeps only that.
NAME_CODES = "name_error_codes"
# One that passes on, as a JSON object, those that are fractions: between models Triton takes none.
FRACTIONS = "fractions"

_CANCEL_POLL_SECONDS = 0.1
# How Triton's own queue says that it is full, or that a request has waited too long.
_REFUSALS = ("maximum queue size", "timeout expired")


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


def ask(
    target: str, inputs: Mapping[str, np.ndarray[Any, Any]], parameters: Mapping[str, object], outputs: Sequence[str]
) -> Iterable[pb_utils.InferenceResponse]:
    """Sends one request to the chat model and gives its responses as they come. Their errors are for `error_of`."""
    fractions = {name: value for name, value in parameters.items() if isinstance(value, float)}
    scalars = {name: value for name, value in parameters.items() if name not in fractions}
    request = pb_utils.InferenceRequest(
        model_name=target,
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
        requested_output_names=list(outputs),
        parameters={**scalars, NAME_CODES: True, FRACTIONS: json.dumps(fractions)},
    )
    responses: Iterable[pb_utils.InferenceResponse] = request.exec(decoupled=True)
    return responses


def cancel(responses: Iterable[pb_utils.InferenceResponse]) -> None:
    """Stops what `ask` has begun, where Triton can (25.04 and later); otherwise it runs on to its end."""
    if hasattr(responses, "cancel"):
        responses.cancel()


def cancelled() -> pb_utils.TritonError:
    return pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)


def error_of(response: pb_utils.InferenceResponse) -> pb_utils.TritonError:
    """An error of `chat` with its code, which Triton drops between models: `chat` names it in the message."""
    message = response.error().message()
    code, _, text = message.partition(": ")
    if code in ("INVALID_ARG", "UNAVAILABLE", "CANCELLED", "INTERNAL"):
        return pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    refused = any(words in message for words in _REFUSALS)
    return pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE if refused else pb_utils.TritonError.INTERNAL)
