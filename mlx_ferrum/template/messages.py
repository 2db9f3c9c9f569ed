"""The messages of a conversation, checked, in the form that a template can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain dicts; ValueError for one without a role or with content of another kind."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: {type(messages).__name__} found, expected a list of dicts")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping):
            found = type(message).__name__
            raise ValueError(
                f"messages[{place}]: {found} found, expected a dict with role and content"
            )
        if not isinstance(message.get("role"), str):
            raise ValueError(
                f"messages[{place}]: role {message.get('role')!r} found, expected a string"
            )
        content = message.get("content")
        if not isinstance(content, (str, list, tuple, type(None))):
            found = type(content).__name__
            raise ValueError(f"messages[{place}]: content of type {found} found, expected a string")
        if content is None and len(message) < (3 if "content" in message else 2):
            raise ValueError(f"messages[{place}]: no content found, expected a string")
    return [dict(message) for message in messages]


def check_tools(tools: Any) -> list[Any] | None:
    """Tools as a list, None if there are none; ValueError for anything but a list of dicts."""
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(f"tools: {type(tools).__name__} found, expected a list of dicts")
    for place, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tools[{place}]: {type(tool).__name__} found, expected a dict")
    return list(tools) or None


def split_final(messages: Any) -> tuple[list[dict[str, Any]], str]:
    """The messages before the last one, and its text. ValueError if the last one is not a reply with text."""
    *before, last = joined(check_messages(messages)) or [{}]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise ValueError(
            f"messages: the last has role {last.get('role')!r}, expected 'assistant' with text to continue"
        )
    return before, last["content"]


def has_parts(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the content of any message is a list of parts."""
    return any(isinstance(message.get("content"), (list, tuple)) for message in messages)


def joined(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with the text parts of each joined. ValueError for a part that is not text."""
    return [
        {**message, "content": _text(message["content"], f"messages[{place}]")}
        if isinstance(message.get("content"), (list, tuple))
        else dict(message)
        for place, message in enumerate(messages)
    ]


def _text(parts: Sequence[Any], name: str) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            found = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{name}: a part of type {found!r} found, expected 'text'")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{name}: a text part without text found, expected a string")
    return "".join(part["text"] for part in parts)
