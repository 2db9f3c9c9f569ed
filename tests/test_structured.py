"""What grammars let through, and texts of a small model under them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import pytest
from random_schemas import Schemas
from test_replies import FORMATS, TOOLS, shown

import mlx_ferrum
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.replies import joined
from mlx_ferrum.replies.parser import ReplyParser
from mlx_ferrum.structured import Grammar, Grammars, Reasoning


@pytest.fixture(scope="module")
def loaded() -> Any:
    return mlx_ferrum.load("tiny-moe")


@pytest.fixture(scope="module")
def grammars(loaded: Any) -> Grammars:
    model, tokenizer = loaded
    return Grammars(tokenizer, model.args.vocab_size)


@pytest.fixture
def takes(loaded: Any, grammars: Grammars) -> Callable[[Grammar, str], bool]:
    """Whether a text follows a grammar from its start to its end."""

    def check(grammar: Grammar, text: str) -> bool:
        follower = grammar.begin()
        try:
            for token in loaded[1].encode_within(text):
                follower.accept(token)
        except ValueError:
            return False
        return follower.may_end

    return check


def texts(loaded: Any, constraints: list[Grammar], **options: Any) -> list[str | None]:
    """What the model writes under each, drawn at random; None if it did not come to an end."""
    model, tokenizer = loaded
    engine = Engine(model, most=40)
    made: dict[int, list[int]] = {}
    ended = set()
    for seed, constraint in enumerate(constraints):
        sampler = {"temp": 1.0, "seed": seed}
        prompt = tokenizer.encode("{")
        [id] = engine.submit(Request(prompt, 300, sampler, constraint=constraint, **options))
        made[id] = []
    while engine.is_busy:
        for event in engine.step():
            assert event.error is None, event.error
            assert event.token is not None
            made[event.id].append(event.token)
            if event.finish_reason == "stop":
                ended.add(event.id)
    return [
        tokenizer.decode([t for t in ids if t not in tokenizer.eos_token_ids])
        if id in ended
        else None
        for id, ids in made.items()
    ]


def test_two_hundred_schemas(loaded: Any, grammars: Grammars) -> None:
    made = Schemas(5)
    schemas = [made.make() for _ in range(200)]
    found = texts(loaded, [grammars.json_schema(schema) for schema in schemas])
    for schema, text in zip(schemas, found, strict=True):
        assert text is not None
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    assert len(set(found)) > 150


def test_what_a_schema_leaves_out(
    grammars: Grammars, takes: Callable[[Grammar, str], bool]
) -> None:
    grammar = grammars.json_schema(
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    )
    assert takes(grammar, '{"a": 12}')
    assert takes(grammar, '{"a": 12, "b": [null]}')
    for text in ('{"a": "12"}', '{"a": 1', "[]", '{"b": 1}', '{"a": 1} '):
        assert not takes(grammar, text)
    assert takes(grammars.json_object(), '{"x": {"y": []}}')
    assert not takes(grammars.json_object(), "[1]")


def test_regular_expressions_and_lark(
    grammars: Grammars, takes: Callable[[Grammar, str], bool]
) -> None:
    assert takes(grammars.regex("[a-c]+/é"), "abc/é")
    assert not takes(grammars.regex("[a-c]+/é"), "abd/é")
    lark = grammars.lark('start: "(" start ")" | "x"')
    assert takes(lark, "((x))") and not takes(lark, "((x)")


@pytest.mark.parametrize("is_open", [False, True])
def test_reasoning_comes_before_the_grammar(
    grammars: Grammars, takes: Callable[[Grammar, str], bool], is_open: bool
) -> None:
    reasoning = Reasoning("<think>", "</think>", is_open)
    grammar = grammars.regex("[0-9]+", reasoning)
    thought = "two < 3\nso</think>\n\n23"
    assert takes(grammar, thought if is_open else f"<think>{thought}")
    assert takes(grammar, "23") is not is_open
    assert not takes(grammar, thought.removesuffix("3") + "x")


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("json_schema", {"type": "foo"}, "the JSON schema: Invalid type: foo"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", {"x-guidance": {}}, "x-guidance, which is not supported"),
        ("json_schema", False, "nothing is valid for"),
        ("json_schema", [], "the JSON schema is list, expected an object"),
        ("json_schema", {"const": "\ud800"}, "the JSON schema: unexpected end of hex escape"),
        ("json_schema", {"enum": ["x" * 300_000]}, "the JSON schema: .* characters, expected at"),
        ("regex", "a(", "the regular expression: .*unclosed group"),
        ("lark", "start: nothing", "the grammar: .*nothing"),
        ("lark", "start: " + '"x" ' * 100_000, "400007 characters, expected at most 262144"),
    ],
)
def test_bad_grammars_are_refused_in_one_line(
    grammars: Grammars, kind: str, given: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as found:
        getattr(grammars, kind)(given)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}])
def test_a_grammar_that_no_text_ends_is_told_so(loaded: Any, grammars: Grammars, schema) -> None:
    follower = grammars.json_schema(schema).begin()
    bits = np.zeros(-(-loaded[0].args.vocab_size // 32), np.int32)
    with pytest.raises(ValueError, match="the grammar: no text goes on from here"):
        follower.fill(bits)


def test_each_text_has_a_state_of_its_own(loaded: Any, grammars: Grammars) -> None:
    grammar = grammars.regex("ab|cd")
    assert grammars.regex("ab|cd") is grammar
    one, other = grammar.begin(), grammar.begin()
    for token in loaded[1].encode_within("ab"):
        one.accept(token)
    assert (one.may_end, one.must_end, other.may_end) == (True, True, False)
    bits = np.zeros(-(-loaded[0].args.vocab_size // 32), np.int32)
    other.fill(bits)
    allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
    assert {loaded[1].piece(int(token))[0][:1] for token in allowed} == {b"a", b"c"}


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("choice", ["required", "weather"])
def test_calls_that_a_grammar_makes_are_read(
    loaded: Any, grammars: Grammars, family: str, choice: str
) -> None:
    city = {"type": "string", "enum": ["Rome", 'Ayr "on" Sea']}
    small = {"city": city, "days": {"enum": [1, 20]}, "is_warm": {"type": "boolean"}}
    schema = {"type": "object", "properties": small, "required": ["days"]}
    tools = [
        {"function": {"name": "weather", "parameters": schema | {"additionalProperties": False}}},
        {"function": {"name": "now", "parameters": {"type": "object", "maxProperties": 0}}},
    ]
    form = FORMATS[family]
    grammar = grammars.tool_calls(form, tools, choice, parallel=False)
    found = [text for text in texts(loaded, [grammar] * 4) if text is not None]
    assert found
    for text in found:
        parser = ReplyParser(form, None, tools=tools)
        (_, name), arguments = shown(joined([*parser.feed(text), *parser.end()]))
        assert name == "weather" or choice == "required"
        if name == "weather":
            jsonschema.validate(arguments, schema)


@pytest.mark.parametrize("parallel", [False, True])
def test_calls_among_text(
    grammars: Grammars, takes: Callable[[Grammar, str], bool], parallel: bool
) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"days": 3}}\n</tool_call>'
    grammar = grammars.tool_calls(FORMATS["hermes"], TOOLS, parallel=parallel)
    assert takes(grammar, "only < text") and takes(grammar, f"Hm. {call}")
    assert takes(grammar, f"{call}\n{call}") is parallel
    assert not takes(grammar, call.replace("3", '"3"'))
    assert not takes(grammar, call.replace("weather", "other"))


def test_parameters_that_are_text_are_free(
    grammars: Grammars, takes: Callable[[Grammar, str], bool]
) -> None:
    grammar = grammars.tool_calls(FORMATS["qwen3-coder"], TOOLS, "weather")
    city = '<parameter=city>\nany <text>\n"\n</parameter>\n'
    for days, is_right in (("3", True), ("three", False)):
        call = f"<function=weather>\n{city}<parameter=days>\n{days}\n</parameter>\n</function>\n"
        assert takes(grammar, f"<tool_call>\n{call}</tool_call>") is is_right


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"enum": ["a", "", 'b "c"\n']}, ["a", "", 'b "c"\n'], ["b"]),
        ({"minLength": 2, "maxLength": 3.0}, ["ab", "日本語", "a\n"], ["a", "abcd"]),
        ({"pattern": "b/c"}, ["b/c", "ab/cd"], ["bc"]),
        ({"pattern": r"^[ab]{2}$"}, ["ab"], ["abc", "xab"]),
        ({"pattern": r"^a\$"}, ["a$", "a$x"], ["a"]),
        ({"$ref": "#/$defs/word", "pattern": "i"}, ["in"], ["on", "ix"]),
        ({"anyOf": [{"$ref": "#/$defs/word"}, {"const": "x"}]}, ["in", "on", "x"], ["y"]),
    ],
)
def test_text_follows_its_schema(
    grammars: Grammars,
    takes: Callable[[Grammar, str], bool],
    schema: Any,
    right: list[str],
    wrong: list[str],
) -> None:
    """Where it stands without quotes."""
    whole: Any = {"properties": {"t": {"type": "string", **schema}}, "required": ["t"]}
    whole["$defs"] = {"word": {"enum": ["in", "on"]}}
    tools = [{"function": {"name": "f", "parameters": whole}}]
    grammar = grammars.tool_calls(FORMATS["qwen3-coder"], tools, "f")
    for text in [*right, *wrong]:
        call = f"<function=f>\n<parameter=t>\n{text}\n</parameter>\n</function>\n"
        assert takes(grammar, f"<tool_call>\n{call}</tool_call>") is (text in right), text


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": []}, "properties: list found, expected an object"),
        ({"properties": {"t": {"type": "string", "minLength": "x"}}}, "expected a whole number"),
        ({"properties": {"t": {"const": "x", "$ref": "#"}, "u": {"type": "string", "$ref": "#/x"}}}, "'#/x' found"),
        ({"properties": {"t": {"type": "string", "pattern": "(?=a)"}}}, "look-around"),
        ({"properties": {"t": {"type": "string", "allOf": [{"$ref": "#/properties/t"}]}}}, "refers to more"),
    ],
)  # fmt: skip
def test_bad_schemas_of_tools_are_refused_in_one_line(
    grammars: Grammars, schema: Any, said: str
) -> None:
    tools = [{"function": {"name": "f", "parameters": schema}}]
    with pytest.raises(ValueError, match=said) as found:
        grammars.tool_calls(FORMATS["qwen3-coder"], tools, "f")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("parallel", [False, True])
def test_mistrals_calls_share_a_list(
    grammars: Grammars, takes: Callable[[Grammar, str], bool], parallel: bool
) -> None:
    form = FORMATS["mistral-list"]
    grammar = grammars.tool_calls(form, TOOLS, "required", parallel=parallel)
    call = '{"name": "now", "arguments": {}}'
    assert takes(grammar, f"[TOOL_CALLS][{call}]")
    assert takes(grammar, f"[TOOL_CALLS][{call}, {call}]") is parallel
    assert not takes(grammar, f"[TOOL_CALLS][{call}][TOOL_CALLS][{call}]")


NODE = {
    "type": "object",
    "properties": {"at": {"type": "integer"}, "next": {"$ref": "#/$defs/node", "title": "x"}},
}
GEMMAS: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "integer", "minimum": 3}, ["3", "40"], ["2", "3.5", "true", "null"]),
    ({"type": ["string", "null"]}, ["null", '"x"', '""'], ["x", "1"]),
    ({"type": "string", "pattern": "^a+$", "maxLength": 2}, ['"a"', '"aa"'], ['"aaa"', '"b"', '""']),
    ({"enum": ["a", "", 1, None, True]}, ['"a"', '""', "1", "null", "true"], ['"b"', "a", "2"]),
    ({"const": {"a b": [1, {"c": "d"}], "e": []}}, ['{"a b":[1,{c:"d"}],e:[]}'], ["{e:[]}"]),
    ({"type": "array", "items": {"type": "boolean"}}, ["[]", "[true]", "[true,false,true]"], ["[1]", "[true,]"]),
    ({"items": {"const": 1}, "minItems": 2, "maxItems": 3}, ["[1,1]", "[1,1,1]"], ["[]", "[1]", "[1,1,1,1]"]),
    ({"prefixItems": [{"const": 1}, {"const": 2}], "items": False}, ["[1,2]"], ["[1]", "[1,2,3]"]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 2}, ["[1,2]", "[1,2,2]"], ["[1]"]),
    ({"$ref": "#/$defs/node"}, ["{}", "{at:1}", "{next:{}}", "{at:1,next:{at:2}}"], ["{next:{},at:1}", "{,}"]),
    ({"allOf": [{"$ref": "#/$defs/node"}, {"required": ["at"]}]}, ["{at:1}", "{at:1,next:{}}"], ["{}"]),
    ({"anyOf": [{"required": ["at"]}, {"required": ["next"]}], **NODE}, ["{at:1}", "{next:{}}"], ["{}"]),
    ({"type": "object", "additionalProperties": {"type": "number"}}, ["{}", "{a:1.5,b:-2}"], ['{a:"x"}']),
    ({"type": "object", "minProperties": 1, "maxProperties": 2}, ["{a:1}", "{a:[],b:{}}"], ["{}", "{a:1,b:1,c:1}"]),
    ({"required": ["a", "b"], "properties": {"b": {"const": 1}}}, ["{b:1,a:[]}"], ["{b:1}", "{a:1}"]),
    ({}, ["1", '"x"', '{a:[1,{b:"c"}],d:null}'], ["x", "{1:2}"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "right", "wrong"), GEMMAS)
def test_gemmas_arguments_follow_their_schema(
    grammars: Grammars,
    takes: Callable[[Grammar, str], bool],
    schema: Any,
    right: list[str],
    wrong: list[str],
) -> None:
    """Quotes stand for the tokens around strings. What the grammar takes is read as a value of the schema."""
    whole = {"properties": {"v": schema}, "required": ["v"], "$defs": {"node": NODE}}
    tools = [{"function": {"name": "f", "parameters": whole}}]
    form = FORMATS["gemma4"]
    grammar = grammars.tool_calls(form, tools, "f")
    for text in [*right, *wrong]:
        value = text.replace('"', '<|"|>')
        call = f"<|tool_call>call:f{{v:{value}}}<tool_call|>"
        assert takes(grammar, call) is (text in right), text
        if text in right:
            parser = ReplyParser(form, None, tools=tools)
            _, arguments = shown(joined([*parser.feed(call), *parser.end()]))
            jsonschema.validate(arguments, whole, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": ""}, "'' found, expected a place"),
        ({"$ref": "#/$defs/none"}, "'#/\\$defs/none' found"),
        ({"type": "thing"}, "'thing' found, expected a type of JSON"),
        ({"type": "array", "minItems": -1}, "minItems: '-1' found"),
        ({"properties": 3}, "properties: int found"),
        ({"$ref": "#/properties/v", "minItems": 1}, "refer to themselves"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ],
)
def test_bad_schemas_of_gemmas_tools_are_refused(
    grammars: Grammars, schema: Any, said: str
) -> None:
    tools = [{"function": {"name": "f", "parameters": {"properties": {"v": schema}}}}]
    with pytest.raises(ValueError, match=said) as found:
        grammars.tool_calls(FORMATS["gemma4"], tools, "f")
    assert "\n" not in str(found.value)


def test_a_choice_must_be_a_tool(grammars: Grammars) -> None:
    with pytest.raises(ValueError, match="tool_choice is 'x', expected one of"):
        grammars.tool_calls(FORMATS["hermes"], TOOLS, "x")
