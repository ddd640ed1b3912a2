"""What of vLLM's log stands in the server's. Nothing here needs vLLM."""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from pathlib import Path

import pytest

from chat_engine.vllm import environment, log


def record(level: int, message: str, *args: object, process: str = "EngineCore") -> logging.LogRecord:
    made = logging.LogRecord("vllm.somewhere", level, "file.py", 1, message, args, None)
    made.vllm_process_name = process
    return made


def line(made: logging.LogRecord) -> str | None:
    return log.Line().format(made) if log.Told().filter(made) else None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("Starting to load model %s...", "/secret/path"), "loading the weights"),
        (("%s KV cache size: %s tokens, more", "GPU", "262,144"), "the KV cache holds 262,144 tokens"),
        (("Graph capturing finished in %.0f secs, took %.2f GiB", 3, 1), "the CUDA graphs are captured"),
        (("init engine (profile, create kv cache, warmup model) took %.2f s", 2.0), "vLLM is warmed up"),
    ],
)
def test_the_start_is_told_in_our_words(said: tuple[object, ...], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log.BEGAN_VARIABLE, str(time.time() - 12))
    assert re.fullmatch(rf"chat_engine\.vllm: start, 12\.\d s: {told}", line(record(logging.INFO, *said)) or "")


def test_one_process_tells_it_for_all() -> None:
    said = "Starting to load model %s...", "x"
    assert line(record(logging.INFO, *said, process="Worker_TP0"))
    assert line(record(logging.INFO, *said, process="Worker_PP0_TP1")) is None


def test_the_rest_is_not_told_but_for_what_is_wrong() -> None:
    assert line(record(logging.INFO, "Initializing a V1 LLM engine (v%s) with config: %s", "1", "/secret/path")) is None
    assert line(record(logging.WARNING, "no %s", "luck")) == "vllm EngineCore: no luck"


def test_the_file_of_settings_is_one_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    logging.config.dictConfig(json.loads(Path(environment.__file__).with_name("logging.json").read_text()))
    try:
        logging.getLogger("vllm.somewhere").warning("no luck")
        assert capsys.readouterr().err == "vllm : no luck\n"
    finally:
        logging.getLogger("vllm").handlers.clear()


def test_who_sets_vllms_own_variables_keeps_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.multiprocessing, "set_executable", lambda _: None)
    monkeypatch.setattr(environment.sys, "executable", environment.sys.executable)
    for name in environment._OF_THE_OPERATOR:
        monkeypatch.delenv(name, raising=False)
    for name in (
        log.BEGAN_VARIABLE,
        "VLLM_NO_USAGE_STATS",
        "VLLM_WORKER_MULTIPROC_METHOD",
        "VLLM_ENGINE_READY_TIMEOUT_S",
    ):
        monkeypatch.setenv(name, "1")  # so that it is as before when the test has ended
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    environment.prepare_process()
    assert "VLLM_LOGGING_CONFIG_PATH" not in environment.os.environ
    monkeypatch.delenv("VLLM_LOGGING_LEVEL")
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "x")
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH")
    environment.prepare_process()
    assert Path(environment.os.environ["VLLM_LOGGING_CONFIG_PATH"]).is_file()
