"""The command `triton-chat-gateway`. All it is told comes from the environment."""

from __future__ import annotations

import argparse
import logging
import logging.config
import os
import sys

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

import triton_chat
from chat_gateway.app import create_app
from chat_gateway.http.listener import Server
from chat_gateway.logs import logging_config
from chat_gateway.settings import GatewaySettings, unknown_variables, variable

_USAGE_ERROR = 2
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

_log = logging.getLogger("chat_gateway")


def main() -> None:
    """Serves until SIGTERM or Ctrl-C. Exits with 2 if a setting is wrong, with uvicorn's 3 if it cannot listen."""
    _parser().parse_args()
    try:
        settings = read_settings()
        server = Server(create_app(settings), settings)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log yet
        sys.exit(_USAGE_ERROR)
    logging.config.dictConfig(logging_config(settings))
    if not settings.api_keys and settings.api_keys_file is None and settings.host not in _LOOPBACK:
        _log.warning("no API keys are set: anyone who can reach this port is served")
    server.run()


def read_settings() -> GatewaySettings:
    """The settings of the environment.

    Raises:
        ValueError: some are wrong or unknown; one sentence a line.
    """
    unknown = unknown_variables(os.environ)
    if unknown:
        raise ValueError("\n".join(f"{name} is not a setting; --help lists the settings" for name in unknown))
    try:
        return GatewaySettings()
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(found) for found in error.errors())) from None
    except SettingsError as error:
        raise ValueError(str(error)) from None


def _sentence(error: ErrorDetails) -> str:
    field = str(error["loc"][0])
    name = field if field.isupper() else variable(field)
    sentence = f"{name}: {error['msg']}"
    if os.environ.get(name, "").startswith("tcp://"):
        sentence += "; Kubernetes sets it for a Service of this name: set enableServiceLinks: false in the pod"
    return sentence


def _parser() -> argparse.ArgumentParser:
    rows = [
        f"  {variable(name)} ({_default(field.default)})\n      {field.description}"
        for name, field in GatewaySettings.model_fields.items()
    ]
    parser = argparse.ArgumentParser(
        prog="triton-chat-gateway",
        description="Serves the OpenAI API over the models of a Triton server.",
        epilog="environment (default):\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"triton-chat-gateway {triton_chat.__version__}")
    return parser


def _default(value: object) -> str:
    return "none" if value in (None, (), {}) else str(value)


if __name__ == "__main__":
    main()
