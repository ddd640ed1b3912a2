"""The error family. Each boundary (Triton, the gateway, the client) maps it once.

A message says what was wrong, with which value, and what is allowed. It never shows a path, an address, a traceback or
another user's text.
"""

from __future__ import annotations


class ChatError(Exception):
    """Base of everything a request can end with instead of an answer."""


class InvalidArgumentError(ChatError):
    """The caller's mistake: a bad, unknown or missing field."""


class UnknownModelError(InvalidArgumentError):
    """No model has the name that was asked for."""


class ContextLengthError(InvalidArgumentError):
    """Prompt, or prompt and requested tokens together, exceed the context."""


class OverloadedError(ChatError):
    """The engine has no room; another try later may succeed."""


class DrainingError(OverloadedError):
    """The engine is shutting down and takes nothing new."""


class RequestCancelledError(ChatError):
    """The caller has cancelled, or is gone."""


class EngineFailedError(ChatError):
    """The engine is broken; what was in flight is lost and the process must restart."""


class NotComputedError(ChatError):
    """The model failed on this request alone; the engine goes on, and another try may fail the same way."""


class ConfigError(Exception):
    """The operator's mistake: a setting that cannot work. Raised while loading, never while serving."""


class UnsupportedModelError(ConfigError):
    """The checkpoint needs something this engine does not do."""
