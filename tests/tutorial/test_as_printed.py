"""docs/tutorial.md as its reader meets it: its files, its commands, and what they print, on a real tritonserver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest

from local import preflight
from local.options import ROOT
from tools.tutorial import PAGE, Block, blocks, commands

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(300)]

BLOCKS = blocks(PAGE.read_text(encoding="utf-8"))
START = next(number for number, block in enumerate(BLOCKS) if block.use == "server")
AS_A_READER = [block for block in BLOCKS[START + 1 :] if block.language == "console"]
NOT_LINKED = {".venv", ".git", "tutorial"}
IMPORTS = ("client", "gateway", "server")
HTTP, GRPC = "localhost:8000", "localhost:8001"
"""Where the page asks; the server of this test has ports of its own."""
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \(\d+ to \d+\) \| [\d.]+ \| (\d+) \(\d+ to \d+\) \| [\d.]+ \| \d+ \|$")


@dataclass
class Reader:
    """Somebody with a clone of the repository, an environment, and a server that was started by the page."""

    folder: Path
    environment: dict[str, str]
    http: str = HTTP
    grpc: str = GRPC

    def types(self, command: str) -> str:
        """Returns what is printed; fails the test where the command fails."""
        done = subprocess.run(
            ["bash", "-c", command.replace(HTTP, self.http)],
            cwd=self.folder,
            env=self.environment | {"TRITON_CHAT_URL": self.grpc},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def follows(self, block: Block) -> None:
        """Types its commands, and compares."""
        for command in commands(block.text):
            printed = self.types(command.text)
            if command.output:
                assert_prints(command.output, printed)

    def loads(self, *models: str) -> None:
        self.types(f".venv/bin/python tutorial/load.py {' '.join(models)}")

    def stats(self, model: str) -> dict[str, int]:
        with urllib.request.urlopen(f"http://{self.http}/v2/models/{model}/stats") as answer:
            return json.load(answer)["model_stats"][0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as links, so that what the page writes does not land in this one."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in NOT_LINKED:
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture(scope="module")
def reader(clone: Path) -> Iterator[Reader]:
    """Has followed the page down to the start of the server."""
    problems = preflight.before_start("127.0.0.1", (0, 0, 0), os.environ)
    if problems:
        pytest.fail("\n".join(map(str, problems)), pytrace=False)
    free_ports = {f"TRITON_{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS")}
    path = os.pathsep.join(str(ROOT / folder) for folder in IMPORTS)
    reader = Reader(clone, os.environ | free_ports | {"PYTHONPATH": path, "COLUMNS": "200"})
    for block in BLOCKS[:START]:
        if block.language == "console":
            reader.follows(block)
    yield from started(reader)


def started(reader: Reader) -> Iterator[Reader]:
    (command,) = commands(BLOCKS[START].text)
    server = subprocess.Popen(
        ["bash", "-c", f"exec env {command.text}"],
        cwd=reader.folder,
        env=reader.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed = read_until(server, "Press Ctrl-C to stop.")
        reader.http, reader.grpc, metrics = re.findall(r"127\.0\.0\.1:\d+", printed)
        for address, port in [(reader.http, 8000), (reader.grpc, 8001), (metrics, 8002)]:
            printed = printed.replace(address, f"127.0.0.1:{port}")
        assert_prints(command.output, printed)
        yield reader
    finally:
        server.terminate()
        rest, _ = server.communicate()
    assert (server.returncode, rest.strip()) == (0, "Stopped.")


def read_until(server: subprocess.Popen[str], last: str) -> str:
    assert server.stdout is not None
    printed = ""
    for line in server.stdout:
        printed += line
        if line.strip() == last:
            return printed
    pytest.fail(f"the server did not start:\n{printed}")


def assert_prints(expected: str, printed: str) -> None:
    expected, printed = expected.rstrip(), printed.rstrip()
    if not OutputChecker().check_output(expected, printed, ELLIPSIS):
        assert printed == expected  # fails, and shows where they differ


def table(printed: str) -> dict[str, tuple[str, ...]]:
    return {match[1]: match.groups()[1:] for line in printed.splitlines() if (match := ROW.match(line))}


def smaller(command: str) -> str:
    """The same measurement in seconds."""
    return re.sub(r"--(questions|rounds) \d+", r"--\1 1", command)


def test_every_block_is_a_file_or_a_command() -> None:
    kinds = {(block.language, block.use) for block in BLOCKS if block.file is None}
    assert kinds == {("console", ""), ("console", "server"), ("console", "measure")}


def test_the_files_are_as_printed(reader: Reader) -> None:
    for block in BLOCKS:
        if block.file is not None:
            assert (reader.folder / block.file).read_text(encoding="utf-8") == block.text


@pytest.mark.parametrize("block", AS_A_READER, ids=lambda block: f"line {block.line}")
def test_commands_print_what_the_page_says(reader: Reader, block: Block) -> None:
    if "curl" in block.text and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if block.use == "measure":
        (command,) = commands(block.text)
        models = re.findall(r"\b(step\d|chat)\b", command.text)
        printed = reader.types(smaller(command.text))
        assert list(table(printed)) == models
        assert "all answers agree" in printed
    else:
        reader.follows(block)


def test_batches_are_formed_from_step_2_on(reader: Reader) -> None:
    reader.loads("step1", "step2", "step3")
    batches = {model: reader.stats(model) for model in ("step1", "step2", "step3")}
    assert batches["step1"]["execution_count"] == batches["step1"]["inference_count"]
    for model in ("step2", "step3"):
        assert batches[model]["execution_count"] < batches[model]["inference_count"]


@pytest.mark.parametrize("question", ["你是谁？", "What is a KV cache?"])
def test_each_step_gives_the_answer_of_the_first(reader: Reader, question: str) -> None:
    first, *others = [ask(reader, model, question)[0] for model in ("step1", "step2", "step3", "step4", "chat")]
    assert others == [first] * 4


@pytest.mark.parametrize("model", ["step3", "step4"])
def test_an_answer_of_one_token(reader: Reader, model: str) -> None:
    assert ask(reader, model, "Who are you?", "1") == ["I", "responses: 1"]


def ask(reader: Reader, model: str, *arguments: str) -> Sequence[str]:
    quoted = " ".join(f"'{argument}'" for argument in arguments)
    return reader.types(f".venv/bin/python tutorial/ask.py {model} {quoted}").splitlines()
