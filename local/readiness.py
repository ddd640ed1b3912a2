"""Watches a starting server: what its HTTP endpoints say, and what its log says."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

_LOADING = re.compile(r'"loading: (\S+?):')
_LOADED = re.compile(r"successfully loaded '(\S+?)'")
_TABLE = re.compile(r"^[+|]|^\s*$")
_INFO = re.compile(r"^I\d{4} ")
_NO_GPU = re.compile(r"pinned_memory_manager|CudaDriverHelper")
_LOG_BYTES = 64 * 1024


def answers(url: str) -> bool:
    """True for a 200; these addresses are our own, so no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):  # refused, timed out, an HTTP error, or cut off: not ready yet
        return False


def http_ready(base_url: str, models: Iterable[str]) -> bool:
    """True when the server, and each of `models`, says that it is ready."""
    paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in models)]
    return all(answers(base_url + path) for path in paths)


def models_in(repository: Path) -> list[str]:
    return sorted(config.parent.name for config in repository.glob("*/config.pbtxt"))


def stage(log: str) -> str:
    """What tritonserver is doing, by its log, in words for a person."""
    loading, loaded = _LOADING.findall(log), set(_LOADED.findall(log))
    waiting = [name for name in loading if name not in loaded]
    if waiting:
        return f"loading {', '.join(waiting)}"
    return "opening the ports" if loading else "starting tritonserver"


def read_log(path: Path) -> str:
    """The end of the log without tritonserver's tables of options; empty when there is none yet."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_BYTES))
        text = log.read().decode("utf-8", errors="replace")
    return "\n".join(line for line in text.splitlines() if not _TABLE.match(line))


def complaints(log: str) -> str:
    """The log without tritonserver's own information lines: its warnings and errors, and all that the models print.

    Its complaints about a missing GPU are left out, and tracebacks get their lines back.
    """
    lines = (line for line in log.splitlines() if not (_INFO.match(line) or _NO_GPU.search(line)))
    return "\n".join(line.replace("\\n", "\n") for line in lines)


def last_lines(text: str, count: int) -> str:
    return "\n".join(text.splitlines()[-count:])
