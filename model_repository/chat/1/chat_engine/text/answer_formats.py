"""The formats of the families that we know, as data: how each writes reasoning and calls."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from chat_engine.answer_format import AnswerFormat, CallSyntax

_FOLDER = Path(__file__).parent / "formats"


@cache
def known_formats() -> dict[str, AnswerFormat]:
    """Ours, by name."""
    return {path.stem: _read(path) for path in sorted(_FOLDER.glob("*.json"))}


def _read(path: Path) -> AnswerFormat:
    data = json.loads(path.read_text(encoding="utf-8"))
    call = data.get("call")
    return AnswerFormat(
        path.stem,
        data["response_template"],
        tags=tuple(data["tags"]),
        reasoning_first=data.get("reasoning_first", False),
        call=CallSyntax.model_validate(call) if call else None,
    )
