"""A Python file whose functions the model may call: loading it, and running a call with a time limit."""

from __future__ import annotations

import inspect
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import util
from pathlib import Path
from types import ModuleType

from triton_chat.errors import InvalidRequestError
from triton_chat.tools import Toolbox
from triton_chat.types import Tool, ToolCall, failure

_AGAIN_S = 1.0
"""After how long a function that has swallowed its end is ended once more."""


class ToolModule:
    """The public functions of a file, or those in its `__all__`."""

    def __init__(self, file: str, limit_s: float) -> None:
        """Runs the file.

        Raises:
            InvalidRequestError: it cannot be run, or has a function that cannot be a tool, or none at all.
        """
        self._file = file
        self._limit_s = limit_s
        self._toolbox = Toolbox(_functions(_load(file)))
        if not self.tools:
            raise InvalidRequestError(f"--tool-module: {file} has no public function")

    def __contains__(self, name: str) -> bool:
        return name in self._toolbox

    @property
    def tools(self) -> list[Tool]:
        return self._toolbox.tools

    def run(self, call: ToolCall) -> str:
        """What the call comes to, as the content of a message. What the function prints goes to standard error.

        The limit ends Python code, also where it sleeps or waits for a network; not a library that computes outside of
        Python, which is ended once it comes back.
        """
        try:
            with _time_limit(self._limit_s), redirect_stdout(sys.stderr):
                return self._toolbox.call(call)
        except _TimeIsUpError:
            return failure(f"{call.name} took longer than {self._limit_s:g} seconds")


class _TimeIsUpError(BaseException):
    """No `Exception`, which a function may catch."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises _TimeIsUpError after so long. Only in the main thread."""
    before = signal.signal(signal.SIGALRM, _raise)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # again: the time may have been up while the line above began
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise(*_: object) -> None:
    raise _TimeIsUpError


def _load(file: str) -> ModuleType:
    path = Path(file).expanduser()
    if not path.is_file():
        raise InvalidRequestError(f"--tool-module: there is no file {file}")
    name = f"triton_chat_tools_{path.stem}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidRequestError(f"--tool-module: {file} is not a Python file: its name must end in .py")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for what their types mean
    sys.path.insert(0, str(path.resolve().parent))  # as when Python runs it: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InvalidRequestError(
            f"--tool-module: {file} cannot be run{_line(error, path)}: {type(error).__name__}: {error}"
        ) from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """Where in the file it was, if it was there."""
    if isinstance(error, SyntaxError):
        return ""  # which says it itself
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f" (line {lines[-1]})" if lines else ""


def _functions(module: ModuleType) -> list[Callable[..., object]]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        missing = [name for name in listed if not hasattr(module, name)]
        if missing:
            raise InvalidRequestError(f"--tool-module: __all__ names {missing[0]!r}, which is not there")
        return [getattr(module, name) for name in listed]
    own = [value for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_")]
    return [function for function in own if function.__module__ == module.__name__]
