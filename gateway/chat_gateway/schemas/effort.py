"""`reasoning_effort` in the words of a model's chat template."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, Literal

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
NO_EFFORT: Final = "none"

_EFFORT: Final = "reasoning_effort"
_SWITCHES: Final = ("enable_thinking", "thinking")
"""What chat templates call it that the model thinks at all."""
EFFORT_KWARGS: Final = (_EFFORT, *_SWITCHES)

_ORDINARY: Final = ("low", "medium", "high")
_NEAREST: Final[Mapping[str, tuple[str, ...]]] = {
    "minimal": ("minimal", "low"),
    "xhigh": ("xhigh", "high"),
    "max": ("max", "xhigh", "high"),
}
"""Most templates know the ordinary efforts and write them without comparing, so their text need not name them."""


def effort_kwargs(effort: Effort, reads: Collection[str], template: str | None = None) -> dict[str, object] | None:
    """`reasoning_effort` as `chat_template_kwargs`; None if the template cannot take this effort.

    Args:
        reads: the variables that the chat template reads.
        template: its text. An effort other than the ordinary ones is sent only if it is quoted there.
    """
    kwargs: dict[str, object] = {name: effort != NO_EFFORT for name in _SWITCHES if name in reads}
    word = _word(effort, template or "") if _EFFORT in reads else None
    if word is not None:
        kwargs[_EFFORT] = word
    if not kwargs and (effort != NO_EFFORT or _EFFORT in reads):
        return None
    return kwargs


def _word(effort: Effort, template: str) -> str | None:
    """The nearest effort that the template takes."""
    if effort in _ORDINARY:
        return effort
    if effort == NO_EFFORT:
        return effort if _names(template, effort) else None
    *exact, fallback = _NEAREST[effort]
    return next((word for word in exact if _names(template, word)), fallback)


def _names(template: str, word: str) -> bool:
    return re.search(rf"""(['"]){word}\1""", template) is not None
