"""What docs/tools.md shows can be sent: its requests are of the wire, its programs and commands run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.client.commands import run
from tests.client.fake_server import FakeTriton, Received, pb, say, say_calls
from triton_chat import wire
from triton_chat.types import CHAT_PARAMETERS, ChatRequest

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
CURL = [
    json.loads(body)
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for body in re.findall(r"curl [^']*localhost:8000[^']*-d '(.*?)'$", block, re.MULTILINE | re.DOTALL)
]
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\$ triton-chat (ask .*)$", PAGE, re.MULTILINE)
INPUTS = {spec.name for spec in wire.INPUTS}


def rows(body: Mapping[str, object]) -> list[dict[str, str]]:
    """The inputs of each row, in a body for `generate` or for `infer`."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list):
        return [{name: str(text) for name, text in body.items()}]
    columns = {tensor["name"]: tensor["data"] for tensor in inputs}
    assert all(tensor["shape"] == [len(tensor["data"]), 1] for tensor in inputs)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_there_are_examples() -> None:
    assert (len(CURL), len(PROGRAMS), len(COMMANDS)) == (6, 3, 6)


@pytest.mark.parametrize("body", CURL)
def test_a_request_is_one_of_the_wire(body: Mapping[str, object]) -> None:
    for row in rows(body):
        assert row.keys() <= INPUTS
        ChatRequest(
            messages=json.loads(row["messages"]) if "messages" in row else None,
            prompt=row.get("text_input"),
            **json.loads(row.get("chat_parameters", "{}")),
        )
        assert json.loads(row.get("chat_parameters", "{}")).keys() <= set(CHAT_PARAMETERS)
        assert json.loads(row.get("sampling_parameters", "{}")).keys() <= set(wire.SAMPLING_PARAMETERS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_runs(fake: FakeTriton, program: str) -> None:
    def reply(received: Received) -> Iterator[pb.ModelStreamInferResponse]:
        wants_call = received.tensor("chat_parameters") and "tool_call_id" not in received.tensor("messages")[0]
        yield from say_calls(("1", "get_weather", '{"city": "Paris"}')) if wants_call else [say("sunny", "stop", 1)]

    fake.reply = reply
    names: dict[str, object] = {}
    exec(program.replace("localhost:8001", fake.url), names)
    assert "sunny" in str(names.get("conversation") or names.get("messages") or names["city"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(fake: FakeTriton, tmp_path: Path, command: str) -> None:
    (tmp_path / "tools.json").write_text("[]")
    (tmp_path / "city.json").write_text("{}")
    words = shlex.split(command.partition(" | ")[0])
    arguments = [str(tmp_path / word) if word.endswith(".json") else word for word in words]
    done = run(fake.url, *arguments)
    assert done.returncode == 0, done.stderr
