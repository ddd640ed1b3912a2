"""The one thread that touches the model, from loading it to the last step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class ModelThread:
    """Runs what it is given, one after the other, on one thread of its own.

    OpenMP keeps a team of workers for every thread that has computed something, and when two teams share the cores they
    stop spinning for their next piece of work. A model that was loaded on another thread than it runs on lost a quarter
    of its speed that way (785 and 590 output tokens/s on two cores).
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], Future[object]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def start(self, function: Callable[[], T]) -> Future[T]:
        """Has `function` run when its turn comes."""
        future: Future[T] = Future()
        self._jobs.put((function, future))  # type: ignore[arg-type]
        return future

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function`, waits for it, and gives its result or raises its error."""
        return self.start(function).result()

    def close(self) -> None:
        """Ends the thread after what it has been given, and waits for that."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
                future.set_exception(error)
