"""Grammars of tool calls, in each family's way of writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..replies.formats import CallFormat
from ..replies.gemma import FUNCTION_GEMMA, GEMMA4, Gemma
from ..replies.kinds import TEXT, Kinds, listed
from .gemma import Values
from .texts import ANY, Texts, properties

Schema = Mapping[str, Any]
Literal = Callable[[str], str]
Json = Callable[[Schema], str]  # a schema in a rule


def tool_grammar(
    calls: CallFormat,
    tools: Mapping[str, Schema],
    *,
    must_call: bool,
    parallel: bool,
    literal: Literal,
    to_json: Json,
) -> str:
    """The lark grammar of a reply that may, or must, call tools.

    tools: the schema of each tool's parameters, of those that may be called
    must_call: the reply consists of calls; else of text, in which calls are well-formed
    parallel: whether there may be several
    literal: a text in a rule, special tokens included
    """
    bodies = _BODIES[calls.name]
    parts: list[str] = []
    names: list[str] = []
    for index, (name, schema) in enumerate(tools.items()):
        body, *rules = bodies(f"call_{index}", name, schema, literal, to_json)
        names.append(f"call_{index}")
        parts += [f"call_{index}: {body}", *rules]
    one = " | ".join(names)
    if calls.name == "mistral-list":
        more = ' (", " one)*' if parallel else ""
        parts, one, parallel = [f"one: {one}", *parts], f'"[" one{more} "]"', False
    start = calls.markers[0] if calls.name != "llama3" else ""
    if calls.name == "llama3":  # a call is the whole reply
        head = "start: call" if must_call else "start: call | TEXT\nTEXT: /([^{](.|\\n)*)?/"
    elif must_call:
        more = f' (SPACE {literal(start)} call)*\nSPACE: "\\n"?' if parallel else ""
        head = f"start: {literal(start)} call{more}"
    else:
        head = _among_text(literal(start), parallel)
    return "\n".join([head, f"call: {one}", *parts])


def _among_text(start: str, parallel: bool) -> str:
    """Text, and calls behind what begins them."""
    is_special = start.startswith("<")  # no regular expression can hold it
    trigger = f"trigger: TEXT {start}" if is_special else f"trigger[lazy]: TEXT {start}"
    whole = "(trigger call)* tail" if parallel else "tail | trigger call"
    return f"start: {whole}\n{trigger}\ntail: TEXT\nTEXT: {ANY}"


def _hermes(_: str, name: str, schema: Schema, literal: Literal, to_json: Json) -> list[str]:
    head = "\n" + f'{{"name": {json.dumps(name)}, "arguments": '
    return [f'{json.dumps(head)} {to_json(schema)} "}}\\n" {literal("</tool_call>")}']


def _llama3(_: str, name: str, schema: Schema, _literal: Literal, to_json: Json) -> list[str]:
    # in the pieces of which JSON consists, so that JSON of another form may stand in its place
    pieces = ["{", '"name"', ": ", json.dumps(name), ", ", '"parameters"', ": "]
    return [f'{" ".join(map(json.dumps, pieces))} {to_json(schema)} "}}"']


def _mistral(_: str, name: str, schema: Schema, literal: Literal, to_json: Json) -> list[str]:
    return [f"{json.dumps(name)} {literal('[ARGS]')} {to_json(schema)}"]


def _mistral_list(_: str, name: str, schema: Schema, _literal: Literal, to_json: Json) -> list[str]:
    head = f'{{"name": {json.dumps(name)}, "arguments": '
    return [f'{json.dumps(head)} {to_json(schema)} "}}"']


def _qwen3_coder(
    rule: str, name: str, schema: Schema, literal: Literal, to_json: Json
) -> list[str]:
    """Parameters in their order, as text where only strings may be and else as JSON."""
    kinds, texts, required = Kinds(schema), Texts(schema), listed(schema, "required")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts, rules = [], []
    for index, (key, value) in enumerate(properties(schema).items()):
        part = f"{rule}_{index}"
        optional = "" if key in required else "?"
        parts.append(f"{part}{optional}")
        opening, closing = json.dumps(f"<parameter={key}>\n"), json.dumps("\n</parameter>\n")
        if kinds.of(value) == TEXT:
            rules += [
                f"{part}: {opening} {part}_text",
                f"{part}_text[suffix={closing}]: {texts.terminal(value)}",
            ]
        else:
            inner = {**value, **shared} if isinstance(value, Mapping) else {}
            rules.append(f"{part}: {opening} {to_json(inner)} {closing}")
    head, tail = json.dumps(f"\n<function={name}>\n"), '"</function>\\n"'
    return [f"{head} {' '.join(parts)} {tail} {literal('</tool_call>')}", *rules]


def _gemma(version: Gemma) -> Callable[..., list[str]]:
    def body(rule: str, name: str, schema: Schema, literal: Literal, to_json: Json) -> list[str]:
        values = Values(rule, schema, literal(version.quote), to_json)
        made = f"{json.dumps(f'call:{name}')} {values.arguments()} {literal(version.end)}"
        return [made, *values.rules]

    return body


_BODIES: dict[str, Callable[..., list[str]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
    "mistral-list": _mistral_list,
    "qwen3-coder": _qwen3_coder,
    "gemma4": _gemma(GEMMA4),
    "functiongemma": _gemma(FUNCTION_GEMMA),
}
