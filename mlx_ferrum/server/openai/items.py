"""The input of a response, as messages that a chat template reads."""

from __future__ import annotations

import json
from typing import Any

from ..fields import Fields
from .messages import text_of


def messages(fields: Fields) -> list[dict[str, Any]]:
    """The field `input`: a text, or items. Raises RequestError for items that are no text and no call of a function."""
    given = fields.get("input")
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.error("input", given, "a text or a list of items")
    found: list[dict[str, Any]] = []
    for i, item in enumerate(given):
        _add(Fields(item, f"input[{i}]"), found)
    return found


def _add(item: Fields, found: list[dict[str, Any]]) -> None:
    kind = item.text("type", "message")
    if kind == "message":
        role = item.text("role")
        role = "system" if role == "developer" else role
        found.append({"role": role, "content": _content(item, "content")})
    elif kind == "function_call":
        _of_assistant(found).setdefault("tool_calls", []).append(_call(item))
    elif kind == "function_call_output":
        result = {"role": "tool", "tool_call_id": item.text("call_id")}
        found.append({**result, "content": _content(item, "output")})
    elif kind == "reasoning":
        parts = item.objects("content") or item.objects("summary")
        texts = [part.text("text", "") for part in parts]
        if any(texts):
            found.append({"role": "assistant", "content": "", "reasoning_content": "".join(texts)})
    else:
        raise item.error(
            "type", kind, "'message', 'function_call', 'function_call_output' or 'reasoning'"
        )


def _content(item: Fields, name: str) -> str:
    value = item.get(name, "")
    if isinstance(value, list):
        return text_of(item, value)
    if not isinstance(value, str):
        raise item.error(name, value, "a string or a list of parts")
    return value


def _of_assistant(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant that a call belongs to: the last one, or a new one."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    return found[-1]


def _call(item: Fields) -> dict[str, Any]:
    text = item.text("arguments", "{}")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = text
    function = {"name": item.text("name"), "arguments": arguments}
    return {"id": item.text("call_id"), "type": "function", "function": function}
