"""The error family as Triton's errors, and back from the texts that Triton keeps between models."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from chat_engine import errors

# By name: the stub adds its classes to `pb_utils` only after this module is imported.
_STATUS = {
    errors.UnknownModelError: "NOT_FOUND",
    errors.InvalidArgumentError: "INVALID_ARG",
    errors.OverloadedError: "UNAVAILABLE",
    errors.RequestCancelledError: "CANCELLED",
    errors.ChatError: "INTERNAL",
}
# How Triton's own queue says that it is full, or that a request has waited too long.
_REFUSALS = ("maximum queue size", "timeout expired")


def to_triton(error: errors.ChatError) -> pb_utils.TritonError:
    """With the status of its kind."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    return pb_utils.TritonError(errors.to_wire(error), getattr(pb_utils.TritonError, status))


def from_triton(error: pb_utils.TritonError) -> errors.ChatError:
    """The error of another model, whose status Triton drops on the way: one of ours, or Triton's own."""
    message = error.message()
    known = errors.from_wire(message)
    if known is not None:
        return known
    if any(words in message for words in _REFUSALS):
        return errors.OverloadedError(message)
    return errors.EngineFailedError(message)
