"""What is installed in an image, as JSON. Runs inside it by its own Python, so with the standard library alone."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import metadata
from pathlib import Path

_STATUS = Path("/var/lib/dpkg/status")
_RELEASE = Path("/etc/os-release")
_LOCAL = Path("/usr/local")


def debian_packages(status: str) -> list[dict[str, str]]:
    """Those installed. `source` is the source package, by which security advisories go."""
    found = []
    for stanza in status.split("\n\n"):
        fields: dict[str, str] = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        source, _, source_version = fields.get("Source", name).partition(" ")
        found.append(
            {
                "name": name,
                "version": version,
                "architecture": fields.get("Architecture", ""),
                "source": source,
                "source_version": source_version.strip("()") or version,
            }
        )
    return found


def python_packages() -> list[dict[str, str]]:
    """Of the environment, then of the Python below it, but for what dpkg has put there."""
    below = [*Path(sys.base_prefix).glob("lib/python3*/site-packages"), *_LOCAL.glob("lib/python3*/dist-packages")]
    found = metadata.distributions(path=list(dict.fromkeys([*sys.path, *map(str, below)])))
    return [{"name": one.metadata["Name"], "version": one.version} for one in found if not _is_debians(one)]


def _is_debians(one: metadata.Distribution) -> bool:
    return str(one.locate_file("")).startswith("/usr/lib/python3/dist-packages")


def release(text: str) -> dict[str, str]:
    return {name: value.strip("\"'") for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)}


def main() -> None:
    status = _STATUS.read_text("utf-8") if _STATUS.exists() else ""
    system = release(_RELEASE.read_text("utf-8")) if _RELEASE.exists() else {}
    found = {
        "system": {"id": system.get("ID", "unknown"), "version": system.get("VERSION_ID", "")},
        "debian": debian_packages(status),
        "python": python_packages(),
        "triton": os.environ.get("TRITON_SERVER_VERSION", ""),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
