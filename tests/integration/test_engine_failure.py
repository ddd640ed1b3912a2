"""A forward pass that fails: everybody is told, and the server ends, so that whoever watches it starts it anew."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.integration.calls import LONG, Stream, ask, connect, eventually, request
from tests.integration.servers import REPOSITORY, ServerFactory, failed_steps

BROKEN_RUNNER = """

import pathlib

from chat_engine.native.model_runner import ModelRunner

_run = ModelRunner.start


def _run_unless_told(self, rows):
    if pathlib.Path(os.environ["FAIL_WHEN_THERE"]).exists():
        raise RuntimeError("out of luck")
    return _run(self, rows)


ModelRunner.start = _run_unless_told
"""


def test_a_failing_step_ends_all_streams_and_then_the_server(start_triton: ServerFactory, tmp_path: Path) -> None:
    repository, trigger = tmp_path / "broken", tmp_path / "fail"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "chat" / "1" / "model.py").open("a") as model:
        model.write(BROKEN_RUNNER)
    server = start_triton(
        {"threads": 1, "max_sequences": 2, "max_step_tokens": 16},
        {"FAIL_WHEN_THERE": str(trigger)},
        repository=repository,
    )
    with connect(server) as stub:
        running = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started() for _ in range(2)]
        waiting = [Stream(stub, request(text_input="Once", sampling_parameters=LONG)) for _ in range(3)]
        began = time.monotonic()
        trigger.touch()
        for stream in running:
            assert "the engine failed" in stream.wait(5).error
        for stream in waiting:
            assert stream.wait(5).error
        assert all("out of luck" not in stream.result.error for stream in running + waiting)
        refused = ask(stub, request(text_input="Once"))
        assert (refused.answers, refused.error != "") == ([], True)
        eventually(lambda: server.poll() is not None, within=10)
    assert time.monotonic() - began < 10
    assert server.poll() == 1
    assert "out of luck" in server.options.log_path.read_text()


POISONED = 17
CHOOSY_RUNNER = f"""

from chat_engine.native.model_runner import ModelRunner

_run = ModelRunner.start


def _run_unless_poisoned(self, rows):
    if any({POISONED} in row.tokens for row in rows):
        raise RuntimeError("out of luck")
    return _run(self, rows)


ModelRunner.start = _run_unless_poisoned
"""


def test_a_request_that_cannot_be_computed_fails_alone(start_triton: ServerFactory, tmp_path: Path) -> None:
    repository = tmp_path / "choosy"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "chat" / "1" / "model.py").open("a") as model:
        model.write(CHOOSY_RUNNER)
    server = start_triton({"threads": 1, "max_sequences": 2, "max_step_tokens": 16}, repository=repository)
    sampling = {"max_tokens": 3, "temperature": 0, "logit_bias": {str(POISONED): -100}, "ignore_eos": True}
    with connect(server) as stub:
        for _ in range(2):
            bad = ask(stub, request(prompt_token_ids=[5, POISONED], sampling_parameters=sampling))
            assert "internal error: the model could not compute this request" in bad.error
            good = ask(stub, request(prompt_token_ids=[5, 6], sampling_parameters=sampling))
            assert good.last.num_output_tokens == 3
    assert failed_steps(server)
    assert server.poll() is None
