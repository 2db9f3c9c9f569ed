"""Short ways to write JSON schemas. Each function is named after the method of `Fields` that reads such a field."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
ANY: Schema = {}
STRING: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
EMPTY: tuple[Any, ...] = (None, False, 0, "", [], {})  # what an unsupported field may be


def number(low: float, high: float) -> Schema:
    """A number from `low` to `high`."""
    return {"type": "number", "minimum": low, "maximum": high}


def whole(low: int, high: int) -> Schema:
    """A whole number from `low` to `high`."""
    return {"type": "integer", "minimum": low, "maximum": high}


def one_of(*values: Any) -> Schema:
    """One of a few values."""
    return {"enum": list(values)}


def items(schema: Schema, **limits: int) -> Schema:
    """A list. limits: minItems and maxItems."""
    return {"type": "array", "items": schema, **limits}


def texts(most: int | None = None, least: int = 0) -> Schema:
    """A string or a list of strings. most: strings; least: characters of each."""
    text = {**STRING, "minLength": least} if least else STRING
    return {"anyOf": [text, items(text, **({} if most is None else {"maxItems": most}))]}


def either(*schemas: Schema) -> Schema:
    """Any of several forms."""
    return {"anyOf": list(schemas)}


def refused(*allowed: Any) -> Schema:
    """A field that is not supported, but for some values."""
    return {"enum": [*EMPTY, *allowed], "description": "Not supported."}


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object that a client sends. Fields that are not in `required` may be null; others are ignored.

    required: names, separated by spaces
    """
    names = required.split()
    shown = {
        name: schema if name in names or not schema else optional(schema)
        for name, schema in properties.items()
    }
    return {"type": "object", "properties": shown, **({"required": names} if names else {})}


def optional(schema: Schema) -> Schema:
    """The same or null."""
    if "enum" in schema:
        values = schema["enum"]
        return schema if None in values else {**schema, "enum": [*values, None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], NULL]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, NULL]}


def sent(maybe: str = "", /, **properties: Schema) -> Schema:
    """An object that the server sends: it has all properties, but for those in `maybe`, and no others.

    maybe: names, separated by spaces
    """
    absent = set(maybe.split())
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in absent],
        "additionalProperties": False,
    }


def event(schema: Schema, *others: str) -> Schema:
    """An event of a stream. others: its data where that is no JSON."""
    data: Schema = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": schema,
    }
    chosen = either(*(one_of(other) for other in others), data) if others else data
    return {
        "type": "object",
        "properties": {"event": STRING, "data": chosen},
        "required": ["data"],
    }
