"""Reasoning, tool calls and structured output in chat completions.

A random model calls no tool, so a grammar makes it write what a test wants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anthropic
import jsonschema
import openai
import pytest
from servers import TEMPLATE, Served, served, write

from mlx_ferrum.server import sampling

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "look")
]
HERMES = "{# <tool_call> <think> </think> #}{% for tool in tools or [] %}({{ tool.function.name }}){% endfor %}"
CALLS = (
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
)
THOUGHT = "<think>\nFirst\nthis.\n</think>\n\n"
FAILED = '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["kind", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    with served(write(tmp_path_factory.mktemp("server") / "m.gguf", HERMES + TEMPLATE)) as found:
        yield found


@pytest.fixture
def scripted(server: Served, monkeypatch) -> Served:
    """A server whose model writes the title of the schema that is asked for."""
    grammars = server.service.grammars

    def literal(schema: Any, *_: Any) -> Any:
        return grammars.regex(re.escape(schema["title"]))

    monkeypatch.setattr(grammars, "json_schema", literal)
    return server


def create(server: Served, **options: Any) -> Any:
    messages = [{"role": "user", "content": "hi"}]
    options = {"model": "tiny", "messages": messages, "temperature": 0, "tools": TOOLS} | options
    return server.openai.chat.completions.create(**options)


def says(text: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": text}}}


def streamed(chunks: Any) -> tuple[str, str, dict[int, tuple[str, str]], str | None]:
    """Text, reasoning, calls (name, arguments) and the reason of the end."""
    text, reasoning, reason = "", "", None
    calls: dict[int, tuple[str, str]] = {}
    for chunk in chunks:
        [choice] = chunk.choices
        text += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert (call.type, call.function.arguments) == ("function", "")
                calls[call.index] = (call.function.name, "")
            else:
                name, before = calls[call.index]
                calls[call.index] = (name, before + call.function.arguments)
        reason = choice.finish_reason or reason
    return text, reasoning, calls, reason


@pytest.mark.parametrize(
    ("written", "text", "reasoning", "calls", "reason"),
    [
        ("plain < text", "plain < text", "", 0, "stop"),
        (f"{THOUGHT}So.", "So.", "First\nthis.", 0, "stop"),
        (f"{THOUGHT}{CALLS}", None, "First\nthis.", 2, "tool_calls"),
        (f"Well. {CALLS}", "Well.", "", 2, "tool_calls"),
        (f"No {FAILED}", f"No {FAILED}", "", 0, "stop"),
    ],
)
def test_replies_are_taken_apart(
    scripted: Served, written: str, text: str, reasoning: str, calls: int, reason: str
) -> None:
    [choice] = create(scripted, response_format=says(written)).choices
    message = choice.message
    assert message.content == text
    assert getattr(message, "reasoning_content", "") == reasoning
    found = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    assert [(name, json.loads(arguments)) for name, arguments in found] == [
        ("add", {"a": 1, "b": "x"}),
        ("look", {}),
    ][:calls]
    assert choice.finish_reason == reason
    stream = create(scripted, response_format=says(written), stream=True)
    assert streamed(stream) == (text or "", reasoning, dict(enumerate(found)), reason)


def test_one_call_at_a_time(scripted: Served) -> None:
    options = {"response_format": says(CALLS), "parallel_tool_calls": False}
    [choice] = create(scripted, **options).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["add"]
    assert choice.finish_reason == "tool_calls"
    *_, calls, reason = streamed(create(scripted, **options, stream=True))
    assert (len(calls), reason) == (1, "tool_calls")
    scripted.wait_until_free()


def test_without_tools_a_call_is_text(scripted: Served) -> None:
    for options in ({"tools": openai.omit}, {"tool_choice": "none"}):
        [choice] = create(scripted, response_format=says(CALLS), **options).choices
        assert (choice.message.content, choice.finish_reason) == (CALLS, "stop")


def test_calls_and_results_come_back_in_the_prompt(server: Served) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    usage = create(server, messages=turns, max_tokens=1).usage
    prompt = "(add)(look)[user]hi\n[assistant]\n[tool]2\n[assistant]"
    assert usage.prompt_tokens == len(server.tokenizer.encode(prompt))


@pytest.mark.parametrize("seed", range(4))
def test_schemas_hold_with_any_sampler(server: Served, seed: int) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    options = {"tools": openai.omit, "temperature": 1.5, "top_p": 0.95, "seed": seed, "n": 2}
    # the model may reason first: a bias keeps it from it, as few tokens are left
    bias = {str(server.tokenizer.encode("<")[0]): -100}
    found = create(server, response_format=format, logit_bias=bias, **options)
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": [{"type": "web"}]},
        {"tools": [{"type": "function", "function": {}}]},
        {"tools": [3]},
        {"tool_choice": "any"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "nobody"}}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
    ],
)
def test_what_cannot_be_honoured_is_an_error(server: Served, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        create(server, **wrong)


def test_anthropics_blocks(scripted: Served, monkeypatch) -> None:
    """Whole and streamed: thinking, text, calls."""
    written = f"{THOUGHT}Well. {CALLS}"
    constraint = scripted.service.grammars.regex(re.escape(written))
    read = sampling.read
    monkeypatch.setattr(sampling, "read", lambda *args: replace(read(*args), constraint=constraint))
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("add", "look")]
    turns = [{"role": "user", "content": "hi"}]
    options = {"model": "tiny", "max_tokens": 300, "messages": turns, "tools": tools}
    with anthropic.Anthropic(base_url=scripted.url, api_key="none") as client:
        create: Any = client.messages.create
        stream: Any = client.messages.stream
        whole = create(**options)
        with stream(**options) as events:
            found = events.get_final_message()
    for message in (whole, found):
        thinking, text, *calls = message.content
        assert (thinking.thinking, text.text) == ("First\nthis.", "Well.")
        assert [(call.name, call.input) for call in calls] == [
            ("add", {"a": 1, "b": "x"}),
            ("look", {}),
        ]
        assert message.stop_reason == "tool_use"


def test_items_of_responses(scripted: Served) -> None:
    """Whole and streamed: reasoning, a message, calls; and their results in the next prompt."""
    client: Any = scripted.openai.responses
    tools: list[Any] = [
        {"name": name, "type": "function", "parameters": {}} for name in ("add", "look")
    ]
    schema = {"title": f"{THOUGHT}Well. {CALLS}"}
    format = {"type": "json_schema", "name": "x", "schema": schema}
    options = {"model": "tiny", "input": "hi", "tools": tools, "text": {"format": format}}
    whole = client.create(**options)
    events = list(client.create(**options, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas: dict[int, str] = {}
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
    for response in (whole, events[-1].response):
        reasoning, _, *calls = response.output
        assert (reasoning.content[0].text, response.output_text) == ("First\nthis.", "Well.")
        assert [call.name for call in calls] == ["add", "look"]
        assert json.loads(calls[0].arguments) == {"a": 1, "b": "x"}
        shown = [reasoning.content[0].text, "Well.", *(call.arguments for call in calls)]
        assert dict(enumerate(shown)) == deltas
        assert {item.status for item in response.output} == {"completed"}
    result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "2"}
    going_on = {"input": [result], "previous_response_id": whole.id, "max_output_tokens": 1}
    usage = client.create(**{**options, **going_on}).usage
    prompt = "(add)(look)[user]hi\n[assistant]Well.\n[tool]2\n[assistant]"
    assert usage.input_tokens == len(scripted.tokenizer.encode(prompt))


def test_ollamas_lines(scripted: Served) -> None:
    """Whole and streamed: thinking, text, calls."""
    turns = [{"role": "user", "content": "hi"}]
    asked: dict[str, Any] = {"messages": turns, "tools": TOOLS}
    asked |= {"format": {"title": f"{THOUGHT}Well. {CALLS}"}, "options": {"num_predict": 300}}
    whole = scripted.http.post("/api/chat", json={**asked, "stream": False}).json()["message"]
    lines = scripted.http.post("/api/chat", json=asked).text.splitlines()
    messages = [json.loads(line)["message"] for line in lines]
    calls = [
        {"function": {"name": "add", "arguments": {"a": 1, "b": "x"}}},
        {"function": {"name": "look", "arguments": {}}},
    ]
    assert whole["tool_calls"] == calls
    assert [message["tool_calls"] for message in messages if "tool_calls" in message] == [calls]
    assert whole["content"] == "".join(message["content"] for message in messages) == "Well."
    thinking = "".join(message.get("thinking", "") for message in messages)
    assert whole["thinking"] == thinking == "First\nthis."
