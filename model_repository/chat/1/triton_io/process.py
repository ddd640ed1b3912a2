"""The process that Triton starts for a model."""

from __future__ import annotations

import logging
import sys


def log_of(model: str) -> logging.Logger:
    """The model's log, which goes to the server's."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    return logging.getLogger(model)
