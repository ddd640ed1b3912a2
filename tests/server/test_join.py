"""`triton-chat-server join`, up to the program that it becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from triton_chat_server.errors import CommandError
from triton_chat_server.join.command import _parser, main, worker_command

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As a LeaderWorkerSet and the chart set it."""
    programs, settings = tmp_path / "bin", tmp_path / "engine"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    settings.mkdir()
    (settings / "chat.json").write_text(json.dumps({"model": "a/b", "engine": "vllm", "vllm": {"nnodes": 2}}))
    return {
        "PATH": str(programs),
        "TRITON_CHAT_ENGINE_CONFIG": str(settings),
        "TRITON_CHAT_REPOSITORY": str(REPOSITORY),
        "LWS_LEADER_ADDRESS": "chat-0.chat.llm",
        "LWS_WORKER_INDEX": "1",
    }


def test_the_group_says_which_leader_and_which_worker(environment: dict[str, str]) -> None:
    command, variables = worker_command(_parser().parse_args([]), environment)
    assert command[1:] == ["-m", "chat_engine.vllm.nodes", "chat", "chat-0.chat.llm", "1"]
    assert Path(command[0]).name == "python3"
    assert variables["PYTHONPATH"] == str(REPOSITORY / "chat" / "1")
    assert environment.items() <= variables.items()


def test_flags_win(environment: dict[str, str]) -> None:
    options = _parser().parse_args(["--leader", "other", "--rank", "7"])
    command, _ = worker_command(options, environment | {"PYTHONPATH": "/mine"})
    assert command[-2:] == ["other", "7"]


def test_a_path_of_the_user_is_kept(environment: dict[str, str]) -> None:
    _, variables = worker_command(_parser().parse_args([]), environment | {"PYTHONPATH": "/mine"})
    assert variables["PYTHONPATH"].endswith(":/mine")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"LWS_LEADER_ADDRESS": ""}, "--leader or LWS_LEADER_ADDRESS"),
        ({"LWS_WORKER_INDEX": ""}, "from 1 on .got ''.*--rank or LWS_WORKER_INDEX"),
        ({"LWS_WORKER_INDEX": "0"}, "from 1 on .got '0'.*the leader has 0"),
        ({"LWS_WORKER_INDEX": "one"}, "got 'one'"),
        ({"TRITON_CHAT_REPOSITORY": "/nowhere"}, "set it with --repository or TRITON_CHAT_REPOSITORY"),
        ({"PATH": "/nowhere"}, "python3 is not on PATH"),
    ],
)
def test_what_is_missing_is_said(environment: dict[str, str], changed: dict[str, str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        worker_command(_parser().parse_args([]), environment | changed)


def test_several_models_are_refused(environment: dict[str, str]) -> None:
    (Path(environment["TRITON_CHAT_ENGINE_CONFIG"]) / "small.json").write_text("{}")
    with pytest.raises(CommandError, match="2 chat models, chat, small: several machines serve one model"):
        worker_command(_parser().parse_args([]), environment)


def test_the_sentence_is_all_that_an_operator_sees(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LWS_LEADER_ADDRESS", raising=False)
    for name, value in environment.items():
        if name != "LWS_LEADER_ADDRESS":
            monkeypatch.setenv(name, value)
    assert main([]) == 1
    assert caplog.messages == ["the leader is missing: set it with --leader or LWS_LEADER_ADDRESS"]


def test_it_becomes_the_program_which_says_what_is_wrong(environment: dict[str, str]) -> None:
    """Without vLLM: the settings are read first."""
    script = "import sys; from triton_chat_server.join.command import main; sys.exit(main(['--rank', '2']))"
    python_path = str(ROOT / "server")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "join: rank: must be from 1 to 1, as vllm.nnodes is 2 (got 2)\n")
