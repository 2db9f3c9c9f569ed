"""Anthropic's messages as a chat template reads them."""

from __future__ import annotations

from typing import Any

from ..fields import Fields

HEADER = "x-anthropic-billing-header:"


def conversation(fields: Fields) -> list[dict[str, Any]]:
    """The fields `system` and `messages`. Raises RequestError for blocks that are no text and no call of a tool."""
    found = []
    system = stable(_text(fields, "system"))
    if system:
        found.append({"role": "system", "content": system})
    given = fields.items("messages")
    if not given:
        raise fields.error("messages", given, "at least one message")
    for i, each in enumerate(given):
        found += _messages(Fields(each, f"messages[{i}]"))
    return found


def stable(system: str) -> str:
    """A system prompt without Claude Code's header, which differs each time: the rest is a prefix known already."""
    lines = system.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(HEADER)).lstrip("\n")


def _text(fields: Fields, name: str) -> str:
    """A string, or the text of blocks, a line break between them."""
    value = fields.get(name, "")
    if isinstance(value, str):
        return value
    texts = []
    for part in fields.objects(name):
        if part.text("type") != "text":
            raise part.error("type", part.get("type"), "'text'")
        texts.append(part.text("text"))
    return "\n".join(texts)


def _messages(fields: Fields) -> list[dict[str, Any]]:
    """What a message becomes: results of tools are messages of their own."""
    role, content = fields.text("role"), fields.get("content")
    if role not in ("user", "assistant", "system"):
        raise fields.error("role", role, "'user' or 'assistant'")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    before: list[dict[str, Any]] = []
    message: dict[str, Any] = {"role": role, "content": ""}
    blocks = fields.items("content")
    for i, block in enumerate(blocks):
        _add(Fields(block, f"{fields.place}.content[{i}]"), message, before)
    is_empty = not message["content"] and len(message) == 2
    return before if is_empty and before else [*before, message]


def _add(block: Fields, message: dict[str, Any], before: list[dict[str, Any]]) -> None:
    kind = block.text("type")
    if kind == "text":
        message["content"] += block.text("text")
    elif kind == "thinking":
        message["reasoning_content"] = message.get("reasoning_content", "") + block.text("thinking")
    elif kind == "tool_use":
        function = {"name": block.text("name"), "arguments": block.get("input", {})}
        call = {"id": block.text("id"), "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)
    elif kind == "tool_result":
        result = {"role": "tool", "tool_call_id": block.text("tool_use_id")}
        before.append({**result, "content": _text(block, "content")})
    elif kind != "redacted_thinking":
        raise block.error("type", kind, "'text', 'thinking', 'tool_use' or 'tool_result'")


def tools(fields: Fields) -> list[dict[str, Any]]:
    """The field `tools`, as OpenAI's clients send them. Raises RequestError for tools that the server would run."""
    found = []
    for i, each in enumerate(fields.items("tools")):
        tool = Fields(each, f"tools[{i}]")
        kind = tool.text("type", "custom")
        if kind != "custom":
            raise tool.error("type", kind, "'custom'")
        function = {
            "name": tool.text("name"),
            "description": tool.text("description", ""),
            "parameters": tool.get("input_schema", {"type": "object"}),
        }
        found.append({"type": "function", "function": function})
    return found
