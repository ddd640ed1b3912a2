"""`triton-chat-server serve` and `probe` with a real tritonserver: several chat models, and what a probe notices."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.integration.calls import LONG, Stream, ask, chat, connect, eventually, infer, request, stubs_of
from tests.integration.served import TINY, ServedTriton, probe
from tests.integration.servers import REPOSITORY
from triton_chat import ChatClient

pytestmark = pytest.mark.alone

QUICK = ("--silent-seconds", "2", "--stall-seconds", "2")
BOTH = ("--model", "chat", "--model", "second")
HANGING_RUNNER = """

import pathlib
import time

from chat_engine.native.model_runner import ModelRunner

_run = ModelRunner.start


def _run_unless_told(self, rows):
    while pathlib.Path(os.environ["HANG_WHEN_THERE"]).exists():
        time.sleep(0.05)
    return _run(self, rows)


ModelRunner.start = _run_unless_told
"""


def engine_folder(folder: Path, **models: Mapping[str, object]) -> dict[str, str]:
    """Settings for each of the models; the environment that names them."""
    folder.mkdir()
    for name, settings in models.items():
        (folder / f"{name}.json").write_text(json.dumps({**TINY, **settings}))
    return {"TRITON_CHAT_ENGINE_CONFIG": str(folder)}


def stub_of(server: ServedTriton, model: str) -> int:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in stubs_of(server)}
    (found,) = [pid for pid, command in commands.items() if f"/{model}/1/model.py" in command[1]]
    return found


@pytest.fixture(scope="module")
def two_models(able_to_serve: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTriton]:
    folder = tmp_path_factory.mktemp("served")
    env = engine_folder(
        folder / "engine", chat={"default_max_tokens": 3}, second={"default_max_tokens": 5, "max_model_len": 100}
    )
    env["TMPDIR"] = str(folder)
    with ServedTriton(
        folder, ["chat", "second", "chat_unary", "tokenizer", "vllm_model"], ["--no-embeddings"], env
    ) as server:
        yield server


def test_it_watches_over_tritonserver(two_models: ServedTriton) -> None:
    assert Path(f"/proc/{two_models.server_pid}/exe").resolve().name == "tritonserver"


def test_the_models_are_those_of_the_settings(two_models: ServedTriton) -> None:
    with connect(two_models) as stub:
        names = {model.name for model in stub.RepositoryIndex(pb.RepositoryIndexRequest()).models}
    assert names == {"chat", "second", "chat_unary", "tokenizer", "vllm_model"}


def test_each_chat_model_has_its_own_settings(two_models: ServedTriton) -> None:
    with connect(two_models) as stub:
        lengths = [ask(stub, request(name, text_input="Once")).last.num_output_tokens for name in ("chat", "second")]
        assert lengths == [3, 5]
        assert infer(stub, request("chat_unary", text_input="Once")).last.num_output_tokens == 3
        refused = ask(stub, request("second", text_input="one two three " * 100)).error
        assert "100" in refused


def test_the_tokenizer_finds_them(two_models: ServedTriton) -> None:
    with ChatClient(two_models.grpc_address) as client:
        first, second = (client.tokenize(chat("Who are you?"), model=name) for name in ("chat", "second"))
    assert first.token_ids == second.token_ids
    assert (first.max_model_len, second.max_model_len) == (2048, 100)


def test_an_idle_server_is_live_and_ready(two_models: ServedTriton) -> None:
    assert probe(two_models, "live", *BOTH, *QUICK) == (0, "")
    assert probe(two_models, "ready", *BOTH) == (0, "")


def test_a_model_that_is_not_there_is_noticed(two_models: ServedTriton) -> None:
    assert probe(two_models, "live", "--model", "third") == (1, "the model 'third' has no metrics")
    code, reason = probe(two_models, "ready", "--model", "third")
    assert (code, reason.partition(":")[0]) == (1, "the model 'third' is not ready")


def test_a_stopped_process_is_noticed_until_it_goes_on(two_models: ServedTriton) -> None:
    stub = stub_of(two_models, "second")
    os.kill(stub, signal.SIGSTOP)
    try:
        eventually(lambda: probe(two_models, "live", *BOTH, *QUICK)[0] == 1, within=10)
        assert "'second' has sent no heartbeat for" in probe(two_models, "live", *BOTH, *QUICK)[1]
        eventually(lambda: probe(two_models, "ready", *BOTH)[0] == 1, within=10)
        assert probe(two_models, "ready", "--model", "chat") == (0, "")
        assert probe(two_models, "live", "--model", "chat", *QUICK) == (0, "")
    finally:
        os.kill(stub, signal.SIGCONT)
    eventually(lambda: probe(two_models, "live", *BOTH, *QUICK) == (0, ""), within=10)


def test_a_long_answer_is_no_stall(two_models: ServedTriton) -> None:
    with connect(two_models) as stub:
        stream = Stream(stub, request(text_input="Once", sampling_parameters=LONG)).started()
        eventually(lambda: len(stream.result.answers) > 100, within=20)
        assert probe(two_models, "live", *BOTH, *QUICK) == (0, "")
        stream.cancel()


def test_a_hanging_step_and_a_killed_process_are_noticed(able_to_serve: None, tmp_path: Path) -> None:
    repository, trigger = tmp_path / "repository", tmp_path / "hang"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
    with (repository / "chat" / "1" / "model.py").open("a") as model:
        model.write(HANGING_RUNNER)
    env = engine_folder(tmp_path / "engine", alpha={"drain_seconds": 1.0})
    env |= {"HANG_WHEN_THERE": str(trigger), "TRITON_CHAT_ASSEMBLY": str(tmp_path / "assembly")}
    served = ServedTriton(tmp_path, ["alpha", "tokenizer"], ["--no-embeddings"], env)
    served.options = replace(served.options, repository=repository)
    live = ("live", "--model", "alpha", *QUICK)
    with served as server, connect(server) as stub:
        assert {path.name for path in (tmp_path / "assembly").iterdir() if path.is_dir()} == {"alpha", "tokenizer"}
        assert probe(server, *live) == (0, "")
        trigger.touch()  # the very first step hangs, after idleness
        stream = Stream(stub, request("alpha", text_input="Once", sampling_parameters={"max_tokens": 3}))
        eventually(lambda: probe(server, *live)[0] == 1, within=10)
        assert "has running sequences, but has made no step for" in probe(server, *live)[1]
        trigger.unlink()
        assert stream.wait().last.num_output_tokens == 3
        eventually(lambda: probe(server, *live) == (0, ""), within=5)

        os.kill(stub_of(server, "alpha"), signal.SIGKILL)
        eventually(lambda: server.poll() == 1, within=10)
        assert "the process of the model 'alpha' is dead; ending the server" in server.log_tail(1)


def test_sigterm_drains_and_ends_with_0(able_to_serve: None, tmp_path: Path) -> None:
    env = engine_folder(tmp_path / "engine", chat={"drain_seconds": 8.0})
    with ServedTriton(tmp_path, ["chat"], ["--no-embeddings"], env) as server, connect(server) as stub:
        stream = Stream(stub, request(text_input="Once", sampling_parameters={**LONG, "max_tokens": 100})).started()
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: probe(server, "ready")[0] == 1, within=5)
        assert stream.wait().last.finish_reason == "length"
        eventually(lambda: server.poll() is not None, within=10)
        assert server.poll() == 0
        code, reason = probe(server, "live")
        assert (code, "does not answer" in reason) == (1, True)
