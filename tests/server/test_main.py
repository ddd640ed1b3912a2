from __future__ import annotations

import subprocess
import sys

import pytest

from triton_chat_server.__main__ import main

HEAVY = ("torch", "numpy", "huggingface_hub", "boto3", "urllib.request", "typer", "triton_chat_server.fetch")


def test_a_probe_imports_little() -> None:
    script = (
        "import sys; from triton_chat_server.__main__ import main\n"
        "try: main(['probe', 'live', '--http', 'http://127.0.0.1:9'])\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "triton_chat_server.probe.checks" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_teaches(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("serve", "join", "fetch", "probe", "examples:"))


@pytest.mark.parametrize(
    "arguments", [["serve", "--help"], ["join", "--help"], ["fetch", "--help"], ["probe", "--help"]]
)
def test_so_does_that_of_each_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: triton-chat-server {arguments[0]}")


@pytest.mark.parametrize("arguments", [["start"], ["fetch"], ["fetch", "hub"], ["fetch", "s3", "--uri", "s3://a"]])
def test_a_wrong_command_line_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("triton-chat-server 0.")
