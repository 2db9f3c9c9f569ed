"""Replies taken apart: text, reasoning and tool calls, however the text is cut."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ferrum.replies import Piece, call_format, joined, make_parser, reasoning_tags
from mlx_ferrum.replies.formats import CALL_FORMATS, CallFormat, Tags
from mlx_ferrum.replies.parser import ReplyParser

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "where": {"type": "object"},
        "is_warm": {"type": "boolean"},
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
FORMATS = {each.name: each for each in CALL_FORMATS}
THINK = Tags("<think>", "</think>")


def parsed(
    text: str,
    calls: str | None = None,
    cuts: Any = (),
    tags: Tags | None = THINK,
    tools: Any = TOOLS,
    is_open: bool = False,
) -> list[Piece]:
    """The pieces of a text that comes in parts, joined."""
    ids = map(str, itertools.count())
    family: CallFormat | None = FORMATS[calls] if calls else None
    parser = ReplyParser(family, tags, is_open=is_open, tools=tools, new_id=lambda: next(ids))
    found: list[Piece] = []
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, stop in itertools.pairwise([0, *ends]):
        found += parser.feed(text[start:stop])
    return joined([*found, *parser.end()])


def shown(pieces: list[Piece]) -> list[Any]:
    """Pieces as pairs; arguments decoded."""
    found: list[Any] = []
    for piece in pieces:
        if piece.kind == "call":
            found.append(("call", piece.name))
        elif piece.kind == "arguments":
            found.append(json.loads(piece.text))
        else:
            found.append((piece.kind, piece.text))
    return found


PARIS = {"city": 'Paris "}]', "days": 3}
PARIS_JSON = json.dumps(PARIS)
CASES = [
    ("hermes", f'Let me see.\n<tool_call>\n{{"name": "weather", "arguments": {PARIS_JSON}}}\n</tool_call>\n<tool_call>'
     '\n{"arguments": {}, "name": "now"}\n</tool_call>',
     [("text", "Let me see."), ("call", "weather"), PARIS, ("call", "now"), {}]),
    ("hermes", '<tool_call>{"name": "now"}', [("call", "now"), {}]),
    ("hermes", '<think>\nHm.\n\n</think>\n\n<tool_call>{"name": "weather", "arguments": '
     '"{\\"days\\": 1}"}</tool_call> bye',
     [("reasoning", "Hm."), ("call", "weather"), {"days": 1}, ("text", "bye")]),
    ("qwen3-coder", "Yes.\n\n<tool_call>\n<function=weather>\n<parameter=city>\n\nNew\n\"York\"\n\n</parameter>\n"
     "<parameter=days>\n7\n</parameter>\n<parameter=where>\n{\"x\": [1, null]}\n</parameter>\n"
     "<parameter=is_warm>\nTrue\n</parameter>\n"
     "</function>\n</tool_call>\n<function=now>\n</function>",
     [("text", "Yes."), ("call", "weather"),
      {"city": "\nNew\n\"York\"\n", "days": 7, "where": {"x": [1, None]}, "is_warm": True}, ("call", "now"), {}]),
    ("llama3", f'{{"name": "weather", "parameters": {PARIS_JSON}}}', [("call", "weather"), PARIS]),
    ("llama3", f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {PARIS_JSON}}}; '
     '{"name": "now", "parameters": {}}', [("call", "weather"), PARIS, ("call", "now"), {}]),
    ("llama3", '<|python_tag|>weather.call(city="Rome", days=2)', [("call", "weather"), {"city": "Rome", "days": 2}]),
    ("llama3", 'Use {"name": "now", "parameters": {}}', [("text", 'Use {"name": "now", "parameters": {}}')]),
    ("mistral", f'[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS_JSON}, "id": "abcdefghi"}}, '
     '{"name": "now", "arguments": {}}]', [("call", "weather"), PARIS, ("call", "now"), {}]),
    ("mistral", f"Well[TOOL_CALLS]weather[ARGS]{PARIS_JSON}[TOOL_CALLS]now[CALL_ID]123456789[ARGS]{{}}",
     [("text", "Well"), ("call", "weather"), PARIS, ("call", "now"), {}]),
    ("gemma4", '<|tool_call>call:weather{city:<|"|>Par"is,}<|"|>,days:3,where:{a:[1,true,<|"|>x<|"|>],b:{}}}'
     "<tool_call|><|tool_call>call:now{}<tool_call|>",
     [("call", "weather"), {"city": 'Par"is,}', "days": 3, "where": {"a": [1, True, "x"], "b": {}}},
      ("call", "now"), {}]),
    ("functiongemma", "<start_function_call>call:weather{city:<escape>Bonn<escape>}<end_function_call>",
     [("call", "weather"), {"city": "Bonn"}]),
]  # fmt: skip


@pytest.mark.parametrize(("calls", "text", "expected"), CASES)
def test_calls_are_found(calls: str, text: str, expected: list[Any]) -> None:
    assert shown(parsed(text, calls)) == expected
    assert shown(parsed(text, calls, cuts=range(len(text)))) == expected


NULL_OR_TEXT = [{"type": "string"}, {"type": "null"}]
TYPED: dict[str, Any] = {
    "type": {"type": ["string", "null"]},
    "union": {"anyOf": NULL_OR_TEXT},
    "place": {"$ref": "#/$defs/place"},
    "all": {"allOf": [{"$ref": "#/$defs/place"}, {"type": "string"}]},
    "number": {"type": ["integer", "boolean"]},
    "enum": {"enum": ["a", 1]},
}


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("type", "null", None),
        ("type", "12", "12"),
        ("type", '"x"', "x"),
        ("union", "None", None),
        ("union", "[1]", "[1]"),
        ("place", '"12"', '"12"'),
        ("place", "null", "null"),
        ("all", "12", "12"),
        ("number", "12", 12),
        ("number", "1e999", float("inf")),
        ("enum", "a", "a"),
        ("enum", "1", 1),
        ("other", "1", 1),
    ],
)
def test_a_schema_tells_text_from_json(key: str, written: str, value: Any) -> None:
    schema = {"properties": TYPED, "$defs": {"place": {"const": "here"}}}
    tools = [{"function": {"name": "f", "parameters": schema}}]
    text = f"<function=f>\n<parameter={key}>\n{written}\n</parameter>\n</function>"
    assert shown(parsed(text, "qwen3-coder", tools=tools)) == [("call", "f"), {key: value}]


MALFORMED = [
    ("hermes", '<tool_call>\n{"name": "nothing", "arguments": {}}\n</tool_call> and so on'),
    ("hermes", "a <tool_call>{name: now}</tool_call>"),
    ("hermes", "<tool_call>"),
    ("qwen3-coder", "<tool_call>\n<function=unknown>\n</function></tool_call>"),
    ("llama3", '{"name": "other", "parameters": {}} x'),
    ("llama3", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS] none"),
    ("gemma4", "<|tool_call>weather{}<tool_call|>"),
]


@pytest.mark.parametrize(("calls", "text"), MALFORMED)
def test_what_is_no_call_is_text(calls: str, text: str) -> None:
    assert shown(parsed(text, calls)) == [("text", text)]


BROKEN = [
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"days": 01', "}}</tool_call>"),
    ("qwen3-coder", "<function=weather>\n<parameter=days>\n1\n</parameter>\n", "done"),
    ("llama3", '{"name": "weather", "parameters": {"days": 1}', "? no"),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"days" ', "}"),
    ("gemma4", "<|tool_call>call:weather{days:1x", "}<tool_call|>"),
]


@pytest.mark.parametrize(("calls", "text", "rest"), BROKEN)
def test_a_call_that_breaks_off_comes_back_whole(calls: str, text: str, rest: str) -> None:
    pieces = parsed(text + rest, calls)
    assert [pieces[0].kind, pieces[0].name] == ["call", "weather"]
    [failed] = [piece for piece in pieces if piece.kind == "failed"]
    after = "".join(piece.text for piece in pieces[pieces.index(failed) + 1 :])
    assert failed.text + after == text + rest
    assert {piece.kind for piece in pieces[pieces.index(failed) + 1 :]} <= {"text"}


def test_calls_before_a_broken_one_stay() -> None:
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": 5}] z'
    assert shown(parsed(text, "mistral")) == [
        ("call", "now"), {}, ("text", ', {"name": 5}] z')
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\na b\n</think>\n\nc ", False, [("reasoning", "a b"), ("text", "c ")]),
        ("a\n</think>c", True, [("reasoning", "a"), ("text", "c")]),
        ("<think>a</think>c", True, [("reasoning", "a"), ("text", "c")]),
        ("a < b", True, [("reasoning", "a < b")]),
        (" \n<think></think>c", False, [("text", "c")]),
        (" say <think>", False, [("text", " say <think>")]),
        ("  c\n", False, [("text", "  c\n")]),
    ],
)
def test_reasoning(text: str, is_open: bool, expected: list[Any]) -> None:
    for cuts in ((), range(len(text))):
        assert shown(parsed(text, cuts=cuts, is_open=is_open, tools=())) == expected


PARTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=weather>", "<parameter=city>", "</parameter>",
    "</function>", "[TOOL_CALLS]", "[ARGS]", "[", "]", "{", "}", '{"name": "weather", "arguments": {', '"days": 1',
    ", ", '"', "\\", "\n", " ", "weather", "call:weather{", "days:1", "<|tool_call>", "<tool_call|>", '<|"|>',
    "<|python_tag|>",
    "weather.call(", "days=1", ")", "é", "x", "<", "1e", "-",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same(data: st.DataObject) -> None:
    calls, text, _ = data.draw(st.sampled_from([*CASES, *((*x, None) for x in MALFORMED)]))
    parts = data.draw(st.lists(st.sampled_from(PARTS), max_size=6))
    at = data.draw(st.integers(0, len(text)))
    text = text[:at] + "".join(parts) + text[data.draw(st.integers(at, len(text))) :]
    cuts = data.draw(st.sets(st.integers(0, len(text)), max_size=8))
    is_open = data.draw(st.booleans())
    whole = parsed(text, calls, is_open=is_open)
    assert parsed(text, calls, cuts, is_open=is_open) == whole
    assert parsed(text, calls, range(len(text)), is_open=is_open) == whole


def test_arguments_come_in_pieces_as_they_are_written() -> None:
    parser = ReplyParser(FORMATS["hermes"], None, tools=TOOLS)
    begin = parser.feed('Hi <tool_call>{"name": "weather", "arguments": {"ci')
    assert [piece.kind for piece in begin] == ["text", "call", "arguments"]
    assert begin[1].id.startswith("call_")
    assert parser.feed('ty": "Par') == [Piece("arguments", 'ty": "Par', 0)]
    assert parser.feed('is"}}') == [Piece("arguments", 'is"}', 0)]
    assert parser.feed("</tool_call>") == parser.end() == []


def test_text_is_passed_on_at_once() -> None:
    parser = ReplyParser(FORMATS["hermes"], THINK, tools=TOOLS)
    given = ["Now", " we", " go <", "b> <tool", "_x"]
    found = ["".join(piece.text for piece in parser.feed(text)) for text in given]
    assert found == ["Now", " we", " go", " <b>", " <tool_x"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>\n<function=x>\n<parameter=y>", "qwen3-coder"),
        ("<tool_call>\n{}</tool_call>", "hermes"),
        ("<|start_header_id|>…<|python_tag|>", "llama3"),
        ('<|start_header_id|> {"name": …, "parameters": …}', "llama3"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral-list"),
        ("[TOOL_CALLS] [ARGS]", "mistral"),
        ("<|tool_call>call:", "gemma4"),
        ("<start_of_turn>user", None),
    ],
)
def test_the_template_tells_the_format(template: str, name: str | None) -> None:
    found = call_format(template)
    assert (found and found.name) == name


def test_the_prompt_may_open_the_reasoning() -> None:
    template = "{{ '<think>' }}"
    assert reasoning_tags(template) == THINK
    assert reasoning_tags("nothing") is None
    assert make_parser(template, "…<think>\n").feed("so")[0].kind == "reasoning"
    assert make_parser(template, "…<think>\n\n</think>\n\n").feed("so")[0].kind == "text"


def test_a_tool_needs_a_name() -> None:
    with pytest.raises(ValueError, match="a tool has the name None, expected a string"):
        make_parser("", tools=[{"function": {}}])
