"""Tool calls that a family's chat template writes are read back as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_replies import TOOLS, shown

from mlx_ferrum.replies import joined, make_parser
from mlx_ferrum.template import ChatTemplate

EACH = "{% for m in messages %}{% if m.role == 'assistant' %}START"
NEXT = "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{% set f = c.function %}"
END = "{% endfor %}END{% else %}<{{ m.role }}>{{ m.content }}\n{% endif %}{% endfor %}"
# What differs between the families' templates: how a call is written.
TEMPLATES = {
    "hermes": '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>',
    "thinking": "{# <think> #}\n<tool_call>\n"
    '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>',
    "qwen3-coder": "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    "llama3": '{# <|python_tag|> #}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}',
    "mistral": "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
    "mistral-list": "{{ '[TOOL_CALLS][' if loop.first else ', ' }}"
    '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}, "id": "abcdefghi"}'
    "{{ ']' if loop.last else '' }}",
    "gemma4": "{% macro put(x) %}{% if x is string %}<|\"|>{{ x }}<|\"|>{% elif x is mapping %}{{ '{' }}"
    "{% for k, v in x | items %}{{ k }}:{{ put(v) }}{{ '' if loop.last else ',' }}{% endfor %}{{ '}' }}"
    "{% elif x is iterable %}[{% for v in x %}{{ put(v) }}{{ '' if loop.last else ',' }}{% endfor %}]"
    "{% else %}{{ x | tojson }}{% endif %}{% endmacro %}"
    "<|tool_call>call:{{ f.name }}{{ put(f.arguments) }}<tool_call|>",
}
ARGUMENTS: list[dict[str, Any]] = [
    {"city": "São\n\"Paulo\" \\ {x}: ['a', 1], <b>", "days": 3, "where": {"x": [1.5, None, "y"], "z": {}}},
    {"city": "12", "is_warm": True, "days": -4, "where": {}},
    {"city": " ", "is_warm": False},
    {},
]  # fmt: skip


@pytest.mark.parametrize("content", ["", "Let me look."])
@pytest.mark.parametrize("family", TEMPLATES)
def test_calls_come_back(family: str, content: str) -> None:
    template = EACH + NEXT + TEMPLATES[family] + END
    lone = family == "llama3"  # one call, and nothing else
    batches = [[each] for each in ARGUMENTS] if lone else [ARGUMENTS[:2], ARGUMENTS[2:]]
    for batch in batches:
        calls = [{"function": {"name": "weather", "arguments": each}} for each in batch]
        turn = {"role": "assistant", "content": "" if lone else content, "tool_calls": calls}
        messages = [{"role": "user", "content": "Hi"}, turn]
        whole = ChatTemplate(template).render(messages=messages)
        reply = whole.partition("START")[2].removesuffix("END")
        parser = make_parser(template, "<user>Hi\nSTART", TOOLS)
        pieces = [piece for letter in reply for piece in parser.feed(letter)] + parser.end()
        said = [("text", content)] if content and not lone else []
        assert shown(joined(pieces)) == said + [
            part for each in batch for part in (("call", "weather"), each)
        ]
        assert len({piece.id for piece in pieces if piece.kind == "call"}) == len(batch)


def test_a_thinking_template_opens_the_reasoning() -> None:
    template = EACH + NEXT + TEMPLATES["thinking"] + END
    parser = make_parser(template, "START<think>\n", TOOLS)
    call = json.dumps({"name": "now", "arguments": {}})
    pieces = parser.feed(f"I could.\n</think>\n\n<tool_call>\n{call}\n</tool_call>") + parser.end()
    assert shown(joined(pieces)) == [("reasoning", "I could."), ("call", "now"), {}]
