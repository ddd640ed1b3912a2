"""What of vLLM's log stands in the server's: how far the start is, and what is wrong.

`logging.json` beside this file names the two classes, which brings the file into all of vLLM's processes.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import time

BEGAN_VARIABLE = "TRITON_CHAT_VLLM_BEGAN"
"""When the start began, in seconds since the epoch, for all of vLLM's processes."""

# What vLLM says of its start, and what is said of it here; the number of a match stands for {}.
_STAGES = (
    (re.compile("Starting to load model"), "loading the weights"),
    (re.compile("Loading weights took"), "the weights are loaded"),
    (re.compile("Dynamo bytecode transform"), "compiling"),
    (re.compile("Compiling a graph .* takes"), "a graph is compiled"),
    (re.compile(r"KV cache size: ([\d,]+) tokens"), "the KV cache holds {} tokens"),
    (re.compile("Graph capturing finished"), "the CUDA graphs are captured"),
    (re.compile("init engine .* took"), "vLLM is warmed up"),
)
# A process that ends looks through all its objects several times, for three seconds; what is frozen it leaves alone.
atexit.register(gc.freeze)

_NOT_THE_FIRST = re.compile(r"[A-Z]+[1-9]")  # of a process: the others say the same


def stage(record: logging.LogRecord) -> str | None:
    """What a line says of the start; None where it says nothing of it."""
    if _NOT_THE_FIRST.search(getattr(record, "vllm_process_name", "")):
        return None
    said = record.getMessage()
    for pattern, words in _STAGES:
        if match := pattern.search(said):
            return words.format(*match.groups())
    return None


def at(words: str) -> str:
    """A line on the start, and how long ago it began."""
    now = time.time()
    return f"start, {now - float(os.environ.get(BEGAN_VARIABLE, now)):.1f} s: {words}"


class Told(logging.Filter):
    """Lets warnings through, errors, and how far the start is."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or stage(record) is not None


class Line(logging.Formatter):
    """In the form of the other lines of this server."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno < logging.WARNING:
            return f"chat_engine.vllm: {at(stage(record) or record.getMessage())}"
        return f"vllm {getattr(record, 'vllm_process_name', '')}: {super().format(record)}"
