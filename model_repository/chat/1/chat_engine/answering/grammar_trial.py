"""Tries grammars in a process of their own before they are compiled here.

llguidance's own limits leave gaps: some schemas take minutes and a chain of a few thousand terminals overflows the
stack, which ends the process. Neither can be stopped in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chat_engine.answering import grammar_trial_process

log = logging.getLogger(__name__)


_BY_OTHERS = (-signal.SIGALRM, -signal.SIGKILL)  # the machine had no time for it, or no memory
_ENDS_SECONDS = 0.2


class TrialUnavailableError(Exception):
    """There is no process to try grammars in, or it got no time."""


@dataclass(frozen=True)
class TrialSetup:
    """What the process needs to know.

    Attributes:
        special: ids and names of tokens that a grammar may name.
        limits: of llguidance's `LLParserLimits`, by name.
        seconds: a grammar may take.
    """

    vocab_size: int
    end_ids: tuple[int, ...]
    special: Mapping[int, str]
    limits: Mapping[str, int | bool]
    seconds: float

    def written(self) -> str:
        """One line."""
        return json.dumps({**vars(self), "path": sys.path}) + "\n"


class GrammarTrial:
    """One process, replaced when a grammar has ended it. Safe from any thread."""

    def __init__(self, setup: TrialSetup) -> None:
        self._setup = setup
        self._lock = threading.Lock()
        self._process = self._start()

    def survives(self, grammar: str) -> bool:
        """Whether it can be compiled, or refused, within the limits. Raises TrialUnavailableError."""
        with self._lock:
            if self._process is None or not self._is_ready(self._process):
                self._process = self._start()  # for the next
                raise TrialUnavailableError
            if self._answers(self._process, json.dumps(grammar) + "\n"):
                return True
            ended_by = self._end(self._process)
            self._process = self._start()
            if ended_by in _BY_OTHERS:
                raise TrialUnavailableError
            return False

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            if self._process:
                self._process.kill()
                self._end(self._process)
            self._process = None

    def _start(self) -> _Process | None:
        command = [python(), "-IS", grammar_trial_process.__file__]
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii")  # noqa: S603
        except OSError:
            log.exception("no process to try grammars in")
            return None
        self._ready = False
        return process

    def _is_ready(self, process: _Process) -> bool:
        if not self._ready:
            self._ready = self._answers(process, self._setup.written())
        return self._ready

    @staticmethod
    def _answers(process: _Process, line: str) -> bool:
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return bool(process.stdout.readline())

    @staticmethod
    def _end(process: _Process) -> int:
        """Ends it, unless it has ended; gives its exit code."""
        assert process.stdin
        assert process.stdout
        try:
            process.wait(_ENDS_SECONDS)  # it has, where it has closed its output
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.returncode


_Process = subprocess.Popen[str]


def python() -> str:
    """The program that runs this Python; inside of Triton `sys.executable` may be another."""
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3")
    own = [Path(sys.executable)] if Path(sys.executable or "").name.startswith("python") else []
    found = [*own, *(Path(folder) / "bin" / name for folder in (sys.prefix, sys.base_prefix) for name in names)]
    return next((str(path) for path in found if os.access(path, os.X_OK)), names[0])
