"""Arguments of Gemma's tool calls: values of a JSON schema as `{key:value,…}`, strings between tokens of their own.

Not looked at are `not`, `if`, `patternProperties`, `uniqueItems`, `contains` and `format`. Of an object whose schema
names properties, no others come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..replies.kinds import KINDS, listed
from .texts import ANY, Texts, found, properties, whole

Schema = Mapping[str, Any]
_DEPTH = 60  # of schemas in schemas
_MOST = 5000  # schemas in one
_BARE_KEY = re.compile(r"[A-Za-z0-9_$.-]+")
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_NOTES = frozenset(  # they say nothing of values
    """title description default examples deprecated readOnly writeOnly $comment $id $schema $defs
    definitions""".split()
)
_ALTERNATIVES = ("anyOf", "oneOf")


class Values:
    """Makes the rules of a tool's arguments.

    name: that rules begin with
    root: the tool's schema, which `$ref` points into
    quote: what is around strings, as in a rule
    to_json: a schema in a rule, as JSON
    rules: made so far
    """

    def __init__(
        self, name: str, root: Schema, quote: str, to_json: Callable[[Schema], str]
    ) -> None:
        self._name, self._root, self._quote, self._to_json = name, root, quote, to_json
        self._texts = Texts(root)
        self._known: dict[str, str] = {}  # rules of references
        self._any_rule = ""
        self._depth = self._count = 0
        self.rules: list[str] = []

    def arguments(self) -> str:
        """What makes all arguments, with their braces.

        Raises ValueError for schemas that are nested too deeply, and for a `$ref` that points nowhere.
        """
        return self._either({**self._merged(self._root), "type": "object"})

    def _rule(self, body: str) -> str:
        """A new rule; its name."""
        name = f"{self._name}_v{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def _value(self, schema: Any) -> str:
        """What makes a value, for a rule."""
        if isinstance(schema, Mapping):
            schema = {key: value for key, value in schema.items() if key not in _NOTES}
        if not isinstance(schema, Mapping) or not schema:
            return self._any()
        if schema.keys() == {"$ref"}:
            return self._reference(str(schema["$ref"]))
        self._depth += 1
        if self._depth > _DEPTH:
            raise ValueError(f"a schema is nested more than {_DEPTH} deep")
        made = self._either(self._merged(schema))
        self._depth -= 1
        return made

    def _reference(self, reference: str) -> str:
        """The rule of what is referred to; it may refer to itself."""
        if reference not in self._known:
            name = self._known[reference] = f"{self._name}_r{len(self._known)}"
            self.rules.append(f"{name}: {self._value(found(reference, self._root))}")
        return self._known[reference]

    def _merged(self, schema: Schema, depth: int = 0) -> Schema:
        """A schema with what `$ref` and `allOf` add to it."""
        self._count += 1
        if depth > _DEPTH or self._count > _MOST:
            raise ValueError(f"schemas refer to themselves, or to more than {_MOST} others")
        made: Schema = {key: value for key, value in schema.items() if key != "allOf"}
        others = listed(schema, "allOf")
        if "$ref" in made:
            others = [found(made["$ref"], self._root), *others]
            made = {key: value for key, value in made.items() if key != "$ref"}
        for other in others:
            if isinstance(other, Mapping):
                made = _joined(self._merged(other, depth + 1), made)
        return made

    def _either(self, schema: Schema) -> str:
        """A value of a merged schema: one of its alternatives, of its values, or of its types."""
        for name in _ALTERNATIVES:
            if alternatives := listed(schema, name):
                rest = {k: v for k, v in schema.items() if k != name and k not in _NOTES}
                made = [
                    self._value(_joined(rest, each))
                    for each in alternatives
                    if isinstance(each, Mapping)
                ]
                return f"({' | '.join(made)})" if made else self._any()
        if "const" in schema:
            return self._constant(schema["const"])
        if words := listed(schema, "enum"):
            return f"({' | '.join(map(self._constant, words))})"
        types = self._types(schema)
        made = [self._typed(kind, schema) for kind in types]
        return made[0] if len(made) == 1 else f"({' | '.join(made)})"

    def _types(self, schema: Schema) -> list[str]:
        given = schema.get("type")
        names = [given] if isinstance(given, str) else given
        if not isinstance(names, list):
            names = sorted(KINDS)
            if "properties" in schema or "required" in schema:
                names = ["object"]
            elif "items" in schema or "prefixItems" in schema:
                names = ["array"]
        for name in names:
            if name not in (*KINDS, "integer"):
                raise ValueError(f"type: {str(name)[:80]!r} found, expected a type of JSON")
        if not names:
            raise ValueError("type: an empty list found, expected a type of JSON")
        return names

    def _typed(self, kind: str, schema: Schema) -> str:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(self._texts.terminal({k: schema[k] for k in schema if k != "type"}))
        if kind in ("number", "integer"):
            limits = {key: schema[key] for key in _NUMBER if key in schema}
            return self._to_json({"type": kind, **limits})
        return '("true" | "false")' if kind == "boolean" else '"null"'

    def _string(self, terminal: str) -> str:
        """A string of a terminal, between its quotes."""
        name = f"{self._name}_t{len(self.rules)}"
        if self._quote.startswith("<"):  # a special token, which no terminal can hold
            self.rules.append(f"{name.upper()}: {terminal}")
            return f"{self._quote} {name.upper()} {self._quote}"
        self.rules.append(f"{name}[suffix={self._quote}]: {terminal}")
        return f"{self._quote} {name}"

    def _constant(self, value: Any) -> str:
        """One value."""
        if isinstance(value, str):
            inner = f" {json.dumps(value)}" if value else ""
            return f"{self._quote}{inner} {self._quote}"
        if isinstance(value, list):
            return f'"[" {_row(map(self._constant, value))} "]"'
        if isinstance(value, Mapping):
            pairs = (f"{self._key(key)} {self._constant(each)}" for key, each in value.items())
            return f'"{{" {_row(pairs)} "}}"'
        return json.dumps(json.dumps(value))

    def _key(self, key: str) -> str:
        """A key and its colon; one that cannot stand bare is quoted."""
        if _BARE_KEY.fullmatch(key):
            return json.dumps(f"{key}:")
        return f'{self._constant(key)} ":"'

    def _object(self, schema: Schema) -> str:
        """Properties in their order."""
        named = properties(schema)
        if not named:
            return self._map(schema)
        required = listed(schema, "required")
        pairs = [(self._pair(key, value), key in required) for key, value in named.items()]
        heads = []  # by the first property that comes
        for i, (pair, is_required) in enumerate(pairs):
            heads.append(f"{pair} {self._rest(pairs[i + 1 :])}".strip())
            if is_required:
                return f'"{{" ({" | ".join(heads)}) "}}"'
        return f'"{{" ({" | ".join(heads)})? "}}"'

    def _pair(self, key: str, schema: Any) -> str:
        return self._rule(f"{self._key(key)} {self._value(schema)}")

    def _rest(self, pairs: list[tuple[str, bool]]) -> str:
        """Properties behind another one."""
        return " ".join(
            f'("," {pair})' + ("" if is_required else "?") for pair, is_required in pairs
        )

    def _map(self, schema: Schema) -> str:
        """An object of any keys."""
        more = schema.get("additionalProperties", True)
        least, most = (whole(schema, name) for name in ("minProperties", "maxProperties"))
        if more is False or most == 0:
            return '"{" "}"'
        value = self._value({} if more is True else more)
        pairs = _repeated([], self._rule(f"/[A-Za-z_][A-Za-z0-9_]*:/ {value}"), least, most)
        return f'"{{" {pairs} "}}"'

    def _array(self, schema: Schema) -> str:
        first = [self._rule(self._value(each)) for each in listed(schema, "prefixItems")]
        least, most = (whole(schema, name) for name in ("minItems", "maxItems"))
        items = schema.get("items", {})
        if items is False or (most is not None and most <= len(first)):
            return f'"[" {_row(first[:most])} "]"'
        return f'"[" {_repeated(first, self._rule(self._value(items)), least, most)} "]"'

    def _any(self) -> str:
        """The rule of any value."""
        if not self._any_rule:
            name = self._any_rule = f"{self._name}_any"
            scalar = self._to_json({"type": ["number", "boolean", "null"]})
            made = [scalar, self._string(ANY), self._map({}), self._array({})]
            self.rules.append(f"{name}: {' | '.join(made)}")
        return self._any_rule


def _row(parts: Iterable[str]) -> str:
    """With commas between them."""
    return ' "," '.join(parts)


def _repeated(first: list[str], item: str, least: int | None, most: int | None) -> str:
    """Parts, and then one of them again and again, with commas. least, most: parts in all"""
    low, done = least or 0, len(first) or 1
    high = "" if most is None else most - done
    row = f'{_row(first or [item])} ("," {item}){{{max(low - done, 0)},{high}}}'
    return row if first or low else f"({row})?"


def _joined(one: Schema, other: Schema) -> Schema:
    """Two schemas that both hold: properties and required ones are joined, and else `other` decides."""
    made = {**one, **other}
    if isinstance(one.get("properties"), Mapping) and isinstance(other.get("properties"), Mapping):
        made["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        made["required"] = [*listed(one, "required"), *listed(other, "required")]
    return made
