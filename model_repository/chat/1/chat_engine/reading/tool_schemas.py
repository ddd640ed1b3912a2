"""What a tool's JSON schema says of its arguments, one by one: for formats that write each as a text of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]

_COMPOSED = frozenset(("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "additionalProperties"))
_PARTS = ("allOf", "anyOf", "oneOf")
_MOST_STEPS = 16  # from reference to reference
_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    list: "array",
    dict: "object",
}


def closed(schema: Schema) -> Schema:
    """Without arguments that it does not name, as a function has no others: where it names them all by itself."""
    return schema if _COMPOSED & schema.keys() else {**schema, "additionalProperties": False}


def parameters(schema: Schema) -> tuple[dict[str, Schema], frozenset[str]]:
    """The arguments of a function by name, and which of them it needs."""
    found: dict[str, Schema] = {}
    required: set[str] = set()
    for part, needed in _objects(schema):
        for name, value in (part.get("properties") or {}).items():
            found.setdefault(name, resolved(value, schema))
        required |= set(part.get("required") or ()) if needed else set()
    return found, frozenset(required)


def as_read(name: str, schema: Schema) -> dict[str, Any]:
    """A tool for the parser of answers, which casts texts by the types of the arguments and looks no further."""
    properties, _ = parameters(schema)
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


def resolved(value: Any, root: Schema) -> Schema:
    """The schema of a value: where it stands, and with its types."""
    schema = _followed(value, root)
    types = types_of(schema, root)
    return {**schema, "type": types} if types and "type" not in schema else schema


def types_of(schema: Schema, root: Schema) -> list[str]:
    """The JSON types that a value may have, none meaning any."""
    found: list[str] = []
    seen: set[int] = set()  # a schema may refer to itself, and to one many times
    rest: list[Any] = [schema]
    while rest:
        raw = rest.pop(0)
        if id(raw) in seen:
            continue
        seen.add(id(raw))
        one = _followed(raw, root)
        parts = [part for name in ("anyOf", "oneOf") for part in one.get(name) or ()]
        if declared := one.get("type"):
            found += [declared] if isinstance(declared, str) else declared
        elif "enum" in one or "const" in one:
            found += [_TYPES[type(value)] for value in one.get("enum", [one.get("const")])]
        elif parts:
            rest += parts
        else:
            return []
    return list(dict.fromkeys(found))


def _followed(value: Any, root: Schema) -> Schema:
    """What a schema stands for where it refers to another, or is composed of only one."""
    schema: Schema = value if isinstance(value, Mapping) else {}
    for _ in range(_MOST_STEPS):
        alone = schema.get("allOf")
        target = alone[0] if isinstance(alone, list) and len(alone) == 1 else _target(schema, root)
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{name: own for name, own in schema.items() if name not in ("$ref", "allOf")}}
    return schema


def _objects(root: Schema) -> Iterator[tuple[Schema, bool]]:
    """The schema and those that it is composed of, each once, with whether it always holds."""
    seen: set[tuple[int, bool]] = set()
    rest: list[tuple[Any, bool]] = [(root, True)]
    while rest:
        schema, needed = rest.pop()
        if not isinstance(schema, Mapping) or (id(schema), needed) in seen:
            continue
        seen.add((id(schema), needed))
        yield schema, needed
        parts = [(part, needed and name == "allOf") for name in _PARTS for part in schema.get(name) or ()]
        rest += [*reversed(parts), (_target(schema, root), needed)]


def _target(schema: Schema, root: Schema) -> Any:
    """What a reference within the schema refers to."""
    reference = schema.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    found: Any = root
    for name in reference[2:].split("/"):
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
