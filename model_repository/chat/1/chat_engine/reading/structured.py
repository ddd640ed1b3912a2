"""`structured_outputs` of a request becomes a `Constraint`: a grammar in the form of the library `llguidance`.

Only sizes are checked here, and what needs no tokenizer; whether the grammar can be followed is found out when it is
compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llguidance import regex_to_lark

from chat_engine.config import EngineConfig
from chat_engine.errors import InvalidArgumentError
from chat_engine.reading.checks import at_most, check_text, read_json
from chat_engine.request import Constraint, StructuredOutputs

FIELD = "structured_outputs"
KINDS = tuple(field.alias or name for name, field in StructuredOutputs.model_fields.items())
_ASCII = "d"  # \d is 0 to 9 in a regex as in the patterns of a schema, whatever digits a version of Unicode knows
_OBJECT = {"type": "object"}
_JSON_OPTIONS = {
    # At most one line break and its indentation between two parts: a model that likes blanks comes to an end.
    "whitespace_pattern": r"(\r?\n)?[\x20\x09]{0,64}",
}
"""How llguidance is to read a schema. They stand in the schema itself, in place of any that the caller wrote."""


def lenient_outputs(given: object) -> object:
    """Forms in which `structured_outputs` may come: as JSON text, the schema as JSON text, `choice` as a list."""
    if isinstance(given, str):
        given = read_json(FIELD, given)
    if not isinstance(given, Mapping):
        return given
    outputs = dict(given)
    if isinstance(outputs.get("json"), str):
        outputs["json"] = read_json(f"{FIELD}.json", outputs["json"])
    if isinstance(outputs.get("choice"), list):
        outputs["choice"] = tuple(outputs["choice"])
    return outputs


def constraint_of(outputs: StructuredOutputs, config: EngineConfig) -> Constraint:
    """What the whole answer must follow. Raises InvalidArgumentError."""
    field = f"{FIELD}.{outputs.given[0]}"
    if outputs.json_ is not None:
        grammar = _of_schema(field, outputs.json_, config)
    elif outputs.choice is not None:
        grammar = _of_choices(field, outputs.choice, config)
    elif outputs.regex is not None:
        _check(field, outputs.regex, config)
        grammar = lark(f"start: /{regex_to_lark(outputs.regex, _ASCII)}/")
    else:
        assert outputs.grammar is not None, "exactly one is given"
        _check(field, outputs.grammar, config)
        grammar = lark(outputs.grammar)
    return Constraint(grammar, field)


def lark(text: str) -> str:
    """Lark in the form that a `Constraint` has."""
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def json_schema(schema: Mapping[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """A schema as llguidance is to read it, for `%json` in Lark, too.

    `lenient`: what it does not know in the schema does not count, instead of being an error, and `oneOf` is `anyOf`.
    """
    return {**schema, "x-guidance": {**_JSON_OPTIONS, "lenient": lenient, "coerce_one_of": lenient}}


def _of_schema(field: str, schema: Mapping[str, Any] | bool, config: EngineConfig) -> str:
    wanted = _OBJECT if isinstance(schema, bool) else schema
    _check(field, _written(field, wanted), config)
    return _written(field, {"grammars": [{"json_schema": json_schema(wanted)}]})


def _of_choices(field: str, choices: tuple[str, ...], config: EngineConfig) -> str:
    at_most(field, len(choices), config.max_choices, "choices")
    _check(field, "".join(choices), config)
    return lark("start: " + " | ".join(map(json.dumps, dict.fromkeys(choices))))


def _check(field: str, text: str, config: EngineConfig) -> None:
    check_text(field, text)
    at_most(field, len(text.encode()), config.max_grammar_bytes, "bytes")


def _written(field: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise InvalidArgumentError("nested too deeply", field=field) from error
    except ValueError as error:
        raise InvalidArgumentError("holds a number that JSON does not have (NaN or infinity)", field=field) from error
