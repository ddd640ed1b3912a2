"""What the answer must be, as flags: short forms of `--structured-outputs`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from triton_chat.cli.files import read_json, read_text
from triton_chat.errors import InvalidRequestError
from triton_chat.types import SamplingParams


def structured(
    sampling: SamplingParams, json_schema: str | None, regex: str | None, choices: list[str] | None, grammar: str | None
) -> SamplingParams:
    """The sampling parameters with what these flags say; `json_schema` and `grammar` are names of files.

    Raises:
        InvalidRequestError: several of them are given, or a file cannot be read.
    """
    given = {
        "--json-schema": json_schema,
        "--regex": regex,
        "--choice": choices,
        "--grammar": grammar,
        "--structured-outputs": sampling.structured_outputs,
    }
    named = [flag for flag, value in given.items() if value not in (None, [])]
    if len(named) > 1:
        raise InvalidRequestError(f"an answer can follow one rule, so give one of {' and '.join(named)}")
    found: dict[str, Any] = {}
    if json_schema is not None:
        found["json"] = read_json("--json-schema", json_schema)
    if regex is not None:
        found["regex"] = regex
    if choices:
        found["choice"] = choices
    if grammar is not None:
        found["grammar"] = read_text("--grammar", grammar)
    return replace(sampling, structured_outputs=found) if found else sampling
