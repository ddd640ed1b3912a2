"""What an operator has to know, as a sentence."""

from __future__ import annotations


class CommandError(Exception):
    """The command cannot do what it was told; the message says why, and what would help. Never holds a secret."""
