"""Files that flags name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triton_chat.errors import InvalidRequestError


def read_text(flag: str, name: str) -> str:
    """The text of a file; `flag` is for the error. Raises InvalidRequestError."""
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{flag}: {name} is not UTF-8 text") from error
    except OSError as error:
        raise InvalidRequestError(f"{flag}: cannot read {name}: {error.strerror}") from error


def read_json(flag: str, name: str) -> Any:
    """The JSON document in a file; `flag` is for the error. Raises InvalidRequestError."""
    text = read_text(flag, name)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequestError(f"{flag}: {name} is not JSON at {where}: {error.msg}") from error
    except ValueError as error:  # the other one that there is
        raise InvalidRequestError(f"{flag}: {name} has a number of too many digits") from error
    except RecursionError as error:
        raise InvalidRequestError(f"{flag}: {name} is nested too deeply") from error
