"""Several forced tool calls, of tools with random schemas, behind reasoning or not: whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import gguf
import jsonschema
import pytest
import random_models
from random_schemas import Schemas
from random_vocabulary import END as END_OF_TEXT
from servers import Served, served
from test_replies_templates import EACH, END, NEXT, TEMPLATES

from mlx_ferrum.replies.formats import CALL_FORMATS, CallFormat, call_format

SIZES = random_models.Sizes(layers=1, vocab=336, context=2048)
TURNS: list[Any] = [{"role": "user", "content": "hi"}]
LIMIT = 300  # tokens
USER, CONTROL = gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL
TAGS = {
    "mistral": ("[THINK]", "[/THINK]"),
    "gemma4": ("<|channel>thought\n", "<channel|>"),
}


@dataclass
class Said:
    """A reply. calls: names, and arguments as JSON"""

    reasoning: str
    text: str
    calls: list[tuple[str, str]]
    reason: str


def tags(family: str) -> tuple[str, str]:
    return TAGS.get(family, ("<think>", "</think>"))


def write(path: Path, family: str, kind: gguf.TokenType | None, opening: str | None = None) -> Path:
    """A model of a family. kind: of the tokens that its formats name; None: they are plain text.

    opening: what the prompt ends with; None: the model does not reason
    """
    found = next(each for each in CALL_FORMATS if each.name == family)
    open_, close = tags(family)
    texts = [*found.markers, *found.texts, open_.strip().removesuffix("thought"), close]
    named = dict(enumerate(dict.fromkeys(texts)))
    template = EACH + NEXT + TEMPLATES[family] + END
    if opening is not None:
        template += f"{{% if add_generation_prompt %}}{opening}{{# {open_} #}}{{% endif %}}"
    return random_models.write(
        path,
        "llama",
        7,
        sizes=SIZES,
        template=template,
        named={} if kind is None else named,
        named_kind=kind or USER,
    )


CASES = [
    ("hermes", USER),
    ("qwen3-coder", USER),
    ("mistral", CONTROL),
    ("mistral-list", None),
    ("llama3", None),
    ("gemma4", None),
    ("gemma4", CONTROL),
]


@pytest.fixture(scope="module", params=CASES, ids="{0[0]}-{0[1]}".format)
def server(request, tmp_path_factory) -> Iterator[Served]:
    with served(write(tmp_path_factory.mktemp("server") / "m.gguf", *request.param)) as found:
        yield found


def schemas(seed: int, count: int) -> dict[str, Any]:
    made = Schemas(seed)
    return {f"tool_{i}": made.make() for i in range(count)}


def nested(tools: dict[str, Any]) -> list[Any]:
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in tools.items()
    ]


def chat(server: Served, **options: Any) -> tuple[list[Said], list[Said]]:
    """Whole and streamed."""
    create: Any = server.openai.chat.completions.create
    # the temperature makes all that a grammar allows about as likely
    options = {"messages": TURNS, "max_tokens": LIMIT, "temperature": 100, **options}
    found = create(model="tiny", **options).choices
    whole = [
        Said(
            getattr(choice.message, "reasoning_content", ""),
            choice.message.content or "",
            [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []],
            choice.finish_reason,
        )
        for choice in found
    ]
    streamed = [Said("", "", [], "") for _ in whole]
    for chunk in create(model="tiny", stream=True, **options):
        [choice] = chunk.choices
        add(streamed[choice.index], choice)
    return whole, streamed


def add(said: Said, choice: Any) -> None:
    """Take a choice of a chunk."""
    delta = choice.delta
    said.text += delta.content or ""
    said.reasoning += getattr(delta, "reasoning_content", None) or ""
    for call in delta.tool_calls or []:
        if call.id is not None:
            assert call.index == len(said.calls)
            said.calls.append((call.function.name, ""))
        name, before = said.calls[call.index]
        said.calls[call.index] = name, before + call.function.arguments
    said.reason = choice.finish_reason or said.reason


def check(found: list[Said], tools: dict[str, Any]) -> int:
    """Whole replies consist of calls that are valid; how many replies are whole."""
    whole = [reply for reply in found if reply.reason != "length"]
    for reply in whole:
        assert reply.text == "" and reply.calls
        for name, arguments in reply.calls:
            jsonschema.validate(json.loads(arguments), tools[name])
    return len(whole)


def ended(found: list[Said]) -> list[Said]:
    """Without replies that break off in a call, which streams send before it is known."""
    return [reply for reply in found if reply.reason != "length"]


def test_calls_that_a_request_forces(server: Served) -> None:
    counts: list[int] = []
    valid = 0
    for seed in range(2):
        tools = schemas(seed, 2)
        options = {"tools": nested(tools), "tool_choice": "required", "seed": seed, "n": 3}
        whole, streamed = chat(server, **options)
        assert ended(whole) == ended(streamed)
        valid += check(whole, tools)
        counts += [len(reply.calls) for reply in whole]
    assert valid
    is_lone = "python_tag" in server.tokenizer.template(True).source
    assert max(counts) == 1 if is_lone else max(counts) > 1


def test_in_responses_and_messages(server: Served) -> None:
    """Items and blocks; streams end with the same."""
    tools = schemas(2, 2)
    flat = [{"type": "function", "name": n, "parameters": s} for n, s in tools.items()]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 60, "seed": 5}
    asked["logit_bias"] = {first(server, END_OF_TEXT): 60}  # so that few replies are cut
    items = {"input": "hi", "tools": flat, "tool_choice": "required", "max_output_tokens": LIMIT}
    create: Any = server.openai.responses.create
    *_, last = create(**asked_of(asked, items), stream=True)
    found = [
        [(item.name, item.arguments) for item in response.output if item.type == "function_call"]
        for response in (create(**asked_of(asked, items)), last.response)
    ]
    blocks = {"max_tokens": LIMIT, "messages": TURNS, "tool_choice": {"type": "any"}}
    blocks["tools"] = [{"name": n, "input_schema": s} for n, s in tools.items()]
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        message: Any = client.messages
        whole = message.create(**asked_of(asked, blocks))
        with message.stream(**asked_of(asked, blocks)) as events:
            contents = [whole.content, events.get_final_message().content]
    if last.response.status == "incomplete" or whole.stop_reason == "max_tokens":
        return
    found += [[(block.name, json.dumps(block.input)) for block in each] for each in contents]
    assert found[0] == found[1] and found[2] == found[3]
    for name, arguments in found[0] + found[2]:
        jsonschema.validate(json.loads(arguments), tools[name])


def asked_of(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Fields that the clients do not know go into the body."""
    return {**own, "model": common["model"], "extra_body": common}


def first(server: Served, text: str) -> str:
    """The first token of a text."""
    return str(server.tokenizer.encode(text, add_special=False, parse_special=True)[0])


FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "maximum": 9}},
    "required": ["kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_form_or_calls(server: Served, is_parallel: bool) -> None:
    """Tools that may be called: the reply is of the form that is asked for, or it calls."""
    [marker, *_] = make_format(server).markers
    is_lone = marker == "<|python_tag|>"
    tools = schemas(4, 2)
    options = {"tools": nested(tools), "parallel_tool_calls": is_parallel, "n": 2, "seed": 2}
    schema = {"name": "x", "schema": FORM}
    options["response_format"] = {"type": "json_schema", "json_schema": schema}
    for begins in ("calls", "form"):
        starts = {
            "calls": ["n", "na"] if is_lone else [marker],
            "form": ["k"] if is_lone else ["{"],
        }
        likely = {first(server, text): 100 for text in starts[begins]}
        whole, streamed = chat(server, **options, temperature=10, logit_bias=likely)
        assert ended(whole) == ended(streamed)
        called = [reply for reply in whole if reply.calls]
        check(called, tools)
        assert is_parallel or all(len(reply.calls) == 1 for reply in called)
        texts = [reply.text for reply in ended(whole) if not reply.calls]
        for text in texts:
            jsonschema.validate(json.loads(text), FORM)
        assert called if begins == "calls" else texts


def make_format(server: Served) -> CallFormat:
    found = call_format(server.tokenizer.template(True).source)
    assert found is not None
    return found


THOUGHTS = [("hermes", USER), ("qwen3-coder", USER), ("mistral", CONTROL), ("gemma4", CONTROL)]


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize(("family", "kind"), THOUGHTS)
def test_reasoning_before_forced_calls(
    tmp_path: Path, family: str, kind: gguf.TokenType, is_open: bool
) -> None:
    """The prompt opens it, or the model does."""
    open_, close = tags(family)
    tools = schemas(3, 2)
    options = {"tools": nested(tools), "tool_choice": "required", "seed": 1, "n": 3}
    options["temperature"] = 20
    with served(write(tmp_path / "m.gguf", family, kind, open_ if is_open else "")) as server:
        # a thought of random length, in which the model may also open another one
        biased = {close: 100, END_OF_TEXT: 40} | ({} if is_open else {open_: 100})
        options["logit_bias"] = {first(server, text): value for text, value in biased.items()}
        whole, streamed = chat(server, **options)
        assert ended(whole) == ended(streamed)
        assert check(whole, tools)
        assert any(reply.reasoning for reply in whole)
        assert not any(close in reply.reasoning for reply in whole)
