"""Tool calls that a request forces, in each family's way of writing them that has a grammar of arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from servers import Served, served, write
from test_replies_templates import EACH, END, NEXT, TEMPLATES

FAMILIES = ["hermes", "qwen3-coder", "llama3", "mistral", "mistral-list", "gemma4"]
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["cat", "dog"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}
NAMES = ("add", "look")
FLAT: list[Any] = [{"type": "function", "name": name, "parameters": SCHEMA} for name in NAMES]
NESTED: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES
]
TURNS: list[Any] = [{"role": "user", "content": "hi"}]
ALLOWED = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]}


@pytest.fixture(scope="module", params=FAMILIES)
def server(request, tmp_path_factory) -> Iterator[Served]:
    template = EACH + NEXT + TEMPLATES[request.param] + END
    with served(write(tmp_path_factory.mktemp("server") / "m.gguf", template)) as found:
        yield found


def check(found: list[tuple[str, Any]], names: tuple[str, ...]) -> None:
    assert len(found) == 1
    for name, arguments in found:
        assert name in names
        jsonschema.validate(arguments, SCHEMA)


@pytest.mark.parametrize(
    ("choice", "names", "reason"),
    [
        ("required", NAMES, "tool_calls"),
        ({"type": "function", "function": {"name": "look"}}, ("look",), "stop"),
        ({"type": "allowed_tools", "allowed_tools": ALLOWED}, ("look",), "tool_calls"),
    ],
)
def test_chat(server: Served, choice: Any, names: tuple[str, ...], reason: str) -> None:
    options = {"model": "tiny", "messages": TURNS, "tools": NESTED, "tool_choice": choice}
    options |= {"parallel_tool_calls": False, "seed": 3, "max_tokens": 400}
    [whole] = server.openai.chat.completions.create(**options).choices
    with server.openai.chat.completions.stream(**options) as events:
        [streamed] = events.get_final_completion().choices
    for found in (whole, streamed):
        calls = [call.function for call in found.message.tool_calls]
        check([(call.name, json.loads(call.arguments)) for call in calls], names)
        assert found.finish_reason == reason


@pytest.mark.parametrize(
    ("choice", "names"), [("required", NAMES), ({"type": "function", "name": "look"}, ("look",))]
)
def test_responses(server: Served, choice: Any, names: tuple[str, ...]) -> None:
    options = {"model": "tiny", "input": "hi", "tools": FLAT, "tool_choice": choice}
    options |= {"parallel_tool_calls": False, "max_output_tokens": 400}
    whole = server.openai.responses.create(**options)
    *_, last = server.openai.responses.create(**options, stream=True)
    for found in (whole, last.response):
        calls = [(item.name, json.loads(item.arguments)) for item in found.output]
        check(calls, names)


@pytest.mark.parametrize(
    ("choice", "names"), [({"type": "any"}, NAMES), ({"type": "tool", "name": "look"}, ("look",))]
)
def test_messages(server: Served, choice: Any, names: tuple[str, ...]) -> None:
    tools = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    choice = {**choice, "disable_parallel_tool_use": True}
    options: Any = {"model": "tiny", "max_tokens": 400, "messages": TURNS, "tools": tools}
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        whole = client.messages.create(**options, tool_choice=choice)
        with client.messages.stream(**options, tool_choice=choice) as events:
            streamed = events.get_final_message()
    for found in (whole, streamed):
        blocks: list[Any] = list(found.content)
        check([(block.name, block.input) for block in blocks], names)
        assert found.stop_reason == "tool_use"


def test_a_template_without_a_format_of_calls_is_named(tmp_path) -> None:
    options: Any = {"model": "tiny", "messages": TURNS, "tools": NESTED, "tool_choice": "required"}
    refused = pytest.raises(openai.BadRequestError, match="shows no known format of tool calls")
    with served(write(tmp_path / "m.gguf")) as found, refused:
        found.openai.chat.completions.create(**options)
