"""Reading and checking a file of settings, with errors that name the file, the setting and its value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from chat_engine.errors import ConfigError

Settings = TypeVar("Settings", bound=BaseModel)


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; `what` says in errors whose settings these are. Raises ConfigError."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the {what} settings {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"the {what} settings {path} are not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the {what} settings {path} must be a JSON object")
    return settings


def check_settings(kind: type[Settings], settings: Mapping[str, object], source: str) -> Settings:
    """Raises ConfigError with one line per mistake."""
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']} (got {e['input']!r})" for e in error.errors()
        ]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error
