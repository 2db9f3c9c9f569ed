"""Prompts in a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One prompt of a file.

    number: of the line, from 1
    prompt: text, or messages
    id: whatever the line has, for the result; None if it has none
    max_tokens: None if the line has none
    """

    number: int
    prompt: str | list[Mapping[str, Any]]
    id: Any = None
    max_tokens: int | None = None


def read_prompts(path: str | Path) -> list[Line]:
    """The prompts of a file of JSON lines; empty lines are skipped.

    Each has "prompt" (text) or "messages" (a conversation), perhaps "id" and "max_tokens", and whatever else.
    Raises ValueError, which names the line, for anything else.
    """
    found = []
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                try:
                    found.append(_line(number, raw))
                except ValueError as error:
                    raise ValueError(f"{path}: line {number}: {error}") from None
    if not found:
        raise ValueError(f"{path}: has no prompts")
    return found


def _line(number: int, raw: bytes) -> Line:
    try:
        fields = json.loads(raw, parse_constant=_refuse)
    except (ValueError, RecursionError):
        shown = raw[:40].decode(errors="replace").strip()
        raise ValueError(f"expected a JSON object, found {shown!r}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found a {type(fields).__name__}")
    given = [name for name in ("prompt", "messages") if name in fields]
    if len(given) != 1:
        raise ValueError(
            f'expected "prompt" or "messages", found {" and ".join(given) or "neither"}'
        )
    return Line(number, _prompt(given[0], fields[given[0]]), fields.get("id"), _most(fields))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _prompt(name: str, value: Any) -> str | list[Mapping[str, Any]]:
    if name == "prompt":
        if not isinstance(value, str):
            raise ValueError(f'"prompt" is a {type(value).__name__}, expected text')
        return value
    if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
        raise ValueError('"messages" is no list of objects, each with "role" and "content"')
    return value


def _most(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("max_tokens")
    if value is not None and (type(value) is not int or (value < 1 and value != -1)):
        raise ValueError(f'"max_tokens" is {value!r}, expected 1 or more, or -1 for no limit')
    return value
