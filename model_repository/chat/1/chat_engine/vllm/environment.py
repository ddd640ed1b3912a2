"""What vLLM takes from the process that it is started in. To be set before it is imported."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path

from chat_engine.answering.grammar_trial import python
from chat_engine.vllm.log import BEGAN_VARIABLE

_LOG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
_LOG_SETTINGS = Path(__file__).with_name("logging.json")
_OF_THE_OPERATOR = {_LOG_VARIABLE, "VLLM_LOGGING_LEVEL", "VLLM_CONFIGURE_LOGGING"}


def prepare_process() -> None:
    """For vLLM and the processes that it starts. Whoever sets one of its variables for the log has its own log."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # A copy of a process with threads hangs, and Triton's has many.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # How long a start may take is for the startup probe to say; vLLM would give up after 600 seconds.
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", "86400")
    os.environ[BEGAN_VARIABLE] = str(time.time())
    if not _OF_THE_OPERATOR & os.environ.keys():
        os.environ[_LOG_VARIABLE] = str(_LOG_SETTINGS)
    sys.executable = python()  # inside of Triton it may be another program
    multiprocessing.set_executable(sys.executable)


def share_process(cores: int) -> None:
    """For a CPU, where one process is vLLM's core and its only worker; vLLM sees to threads in workers of their own."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores - 1)))  # one is for the rest of the server


def compile_nothing() -> None:
    """For eager engines, in which vLLM leaves parts of its sampler to torch.compile all the same.

    That takes seconds, and a C++ compiler.
    """
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
