"""The error family, which `model.py` maps once.

A message says what was wrong, with which value, and what is allowed. It never shows a path, an address, a traceback or
another user's text.
"""

from __future__ import annotations


class EmbeddingError(Exception):
    """Base of everything a request can end with instead of vectors."""


class InvalidArgumentError(EmbeddingError):
    """The caller's mistake: a bad, unknown or missing input."""


class ForwardError(EmbeddingError):
    """The model failed on this text."""


class ConfigError(Exception):
    """The operator's mistake: a setting that cannot work. Raised while loading, never while serving."""


class UnsupportedModelError(ConfigError):
    """The checkpoint needs something that is not done here."""
