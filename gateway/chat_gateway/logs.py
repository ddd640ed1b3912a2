"""Log lines as JSON objects, one a line, on standard output."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from chat_gateway.settings import GatewaySettings

_MAX_CAUSES = 5

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class JsonLines(JsonFormatter):
    """`time`, `level`, `logger`, `message`, and what the place adds."""

    def __init__(self) -> None:
        super().__init__(
            "{levelname}{name}{message}",
            style="{",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
            json_ensure_ascii=False,
        )

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        """Kinds of errors and where they happened. Their messages stay out: they may quote a prompt."""
        parts: list[str] = []
        error = ei[1]
        for _ in range(_MAX_CAUSES):
            if error is None:
                break
            parts.insert(0, "".join([*traceback.format_tb(error.__traceback__), type(error).__qualname__]))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\n\n".join(parts)


def logging_config(settings: GatewaySettings) -> dict[str, Any]:
    """For `logging.config.dictConfig`; the libraries stay at `info` even if the gateway is to say more."""
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}},
        "root": {"level": "INFO" if level == "DEBUG" else level, "handlers": ["stdout"]},
        "loggers": {"chat_gateway": {"level": level}},
    }
