"""What the tests add to vLLM's workers: a forward pass that fails, or never ends."""

from __future__ import annotations

import time
from typing import Any


class Breaking:
    """vLLM makes the worker's class one of these, too (`worker_extension_cls`)."""

    model_runner: Any

    def fail_from_now_on(self) -> None:
        self.model_runner.execute_model = _fail

    def hang_from_now_on(self) -> None:
        self.model_runner.execute_model = _hang


def _fail(*_arguments: object, **_more: object) -> None:
    raise RuntimeError("the step fails")


def _hang(*_arguments: object, **_more: object) -> None:
    time.sleep(3600)
