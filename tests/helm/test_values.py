"""values.yaml, its schema and the README say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest

from tests.helm.cases import ci_cases, defaults, effective
from tests.helm.objects import found
from tests.helm.paths import CHART
from tools import chart_readme

Schema = Mapping[str, Any]
LONGEST_VALUES = 260
FREE_FORM = {
    "adapters",
    "affinity",
    "annotations",
    "commonLabels",
    "config",
    "engine",
    "global",
    "labels",
    "limits",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "podSecurityContext",
    "requests",
    "settings",
}
"""Maps whose keys are the user's: names, Kubernetes' own, the engine's, and settings that the templates check."""
PASSED_THROUGH = ("accessMode", "pullPolicy", "service.type")
"""Choices that are Kubernetes' own."""


@pytest.fixture(scope="module")
def schema() -> Schema:
    loaded: Schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return loaded


def resolved(schema: Schema, node: Schema) -> Schema:
    """`node`, or the definition that it names."""
    while "$ref" in node:
        reference = node["$ref"].removeprefix("#/definitions/")
        node = schema["definitions"][reference]
    return node


def described(schema: Schema, node: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Schema]]:
    """Every place of the schema, by the path of the value; `[]` for the items of a list."""
    node = resolved(schema, node)
    yield path, node
    for key, child in node.get("properties", {}).items():
        yield from described(schema, child, (*path, key))
    if isinstance(node.get("items"), Mapping):
        yield from described(schema, node["items"], (*path, "[]"))
    for branch in [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]:
        yield from described(schema, branch, path)


def values_of(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from values_of(item, (*path, key))


def is_free(path: tuple[str, ...]) -> bool:
    return any(part in FREE_FORM for part in path)


def test_the_schema_is_one(schema: Schema):
    jsonschema.Draft7Validator.check_schema(schema)


def test_every_value_is_described(schema: Schema):
    places = {path for path, _ in described(schema, schema)}
    assert [".".join(path) for path in values_of(defaults()) if path not in places and not is_free(path)] == []


def test_everything_described_is_a_value(schema: Schema):
    """Nothing is taken that values.yaml does not show; parts that refine a default may have more."""
    shown = set(values_of(defaults()))
    hidden = {
        path[:index]
        for path, _ in described(schema, schema)
        for index in range(1, len(path) + 1)
        if path[:index] not in shown and "[]" not in path[:index]
    }
    refined = {("embeddings", "model"), ("canary", "model"), ("canary", "image")}
    unexpected = {path for path in hidden if not is_free(path) and path[:2] not in refined}
    assert {".".join(path) for path in unexpected} == set()


def test_maps_take_no_unknown_keys(schema: Schema):
    open_maps = {
        ".".join(path)
        for path, node in described(schema, schema)
        if "object" in node.get("type", "") and node.get("additionalProperties") is not False
    }
    in_lists = {path for path in open_maps if path.endswith("[]")}
    assert {path for path in open_maps - in_lists if not is_free(tuple(path.split(".")))} == set()
    assert all(path.split(".")[0] != "extraModels" for path in in_lists)


def test_everything_has_a_type_or_choices(schema: Schema):
    kinds = {"type", "enum", "const", "anyOf", "oneOf", "$ref"}
    assert [".".join(path) for path, node in described(schema, schema) if not kinds & node.keys()] == []


def test_the_defaults_and_the_files_of_ci_are_valid(schema: Schema):
    validator = jsonschema.Draft7Validator(schema)
    for values in [defaults(), *(effective(case) for case in ci_cases())]:
        assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)] == []


def test_a_misspelt_key_is_refused_at_every_level(schema: Schema):
    validator = jsonschema.Draft7Validator(schema)

    def levels(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if isinstance(value, dict) and value and not is_free(path):
            yield path
            for key, item in value.items():
                yield from levels(item, (*path, key))

    for path in levels(defaults()):
        wrong: dict[str, Any] = {"misspelt": 1}
        for part in reversed(path):
            wrong = {part: wrong}
        assert list(validator.iter_errors(wrong)), ".".join(path)


def test_ci_uses_every_choice(schema: Schema):
    """Each value of each enum of the chart's own is in a file of ci/, or a default."""
    used = [effective(case) for case in ci_cases()]
    missing = [
        f"{'.'.join(path)}={choice}"
        for path, node in described(schema, schema)
        if not ".".join(path).endswith(PASSED_THROUGH)
        for choice in node.get("enum", [])
        if all(choice not in found(values, path[-1]) for values in used)
    ]
    assert missing == []


def test_values_yaml_is_short():
    assert len((CHART / "values.yaml").read_text(encoding="utf-8").splitlines()) <= LONGEST_VALUES


def test_the_readme_is_made_from_these_values():
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    values = (CHART / "values.yaml").read_text(encoding="utf-8")
    assert readme == chart_readme.updated(readme, values), "run `make chart-readme`"


def test_every_value_that_a_template_reads_exists():
    """A template that reads a value by a name that values.yaml has not would always find nothing."""
    shown = {".".join(path) for path in values_of(defaults())}
    read = {
        match
        for path in (CHART / "templates").rglob("*")
        if path.is_file()
        for match in re.findall(r"\.Values\.([A-Za-z0-9.]+)", path.read_text(encoding="utf-8"))
    }
    assert sorted(name for name in read if name not in shown and not is_free(tuple(name.split(".")))) == []
