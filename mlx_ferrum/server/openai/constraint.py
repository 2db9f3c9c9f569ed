"""Which grammar a reply has to follow: that of tool calls where one must come, else that of the text.

A forced call takes precedence over the form of the text. Where tools may be called but need not be, the reply is either
of the form or consists of calls; of the form only, where the model's format of calls is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_ferrum.replies import call_format
from mlx_ferrum.structured import Grammar, Grammars, Reasoning, ToolCalls

from ..errors import RequestError
from ..fields import Fields
from ..sampling import Sampling
from ..service import Service
from .messages import Rendered

MODES = ("none", "auto", "required")
FORMS = ("json", "json_object", "regex", "choice", "grammar")
Tool = Mapping[str, Any]


@dataclass(frozen=True)
class Tools:
    """What a request says of tools.

    offered: the tools that the chat template shows to the model
    forced: the reply has to call one of these; empty: it need not call any
    is_named: whether the client named the function to call
    is_parallel: whether there may be several calls
    """

    offered: Sequence[Tool] = ()
    forced: Sequence[Tool] = ()
    is_named: bool = False
    is_parallel: bool = True

    @property
    def most(self) -> int | None:
        """Calls at most; None: any number."""
        return None if self.is_parallel and not self.is_named else 1


@dataclass(frozen=True)
class Form:
    """What the text has to be. kind: one of `FORMS` but json_object. value: of that kind."""

    kind: str
    value: Any

    def compiled(
        self, grammars: Grammars, reasoning: Reasoning | None, calls: ToolCalls | None
    ) -> Grammar:
        """Its grammar, behind reasoning; calls may come instead. Raises ValueError for one that is wrong."""
        if self.kind == "json":
            return grammars.json_schema(self.value, reasoning, calls)
        if self.kind == "regex":
            return grammars.regex(self.value, reasoning, calls)
        if self.kind == "choice":
            choices = " | ".join(json.dumps(text) for text in self.value)
            return grammars.lark(f"start: {choices}", reasoning, calls)
        return grammars.lark(self.value, reasoning, calls)


ANY_OBJECT = Form("json", {"type": "object"})


def choose(fields: Fields, tools: Sequence[Tool], mode: str, *, is_parallel: bool = True) -> Tools:
    """The tools of a request by its mode. Raises RequestError for a call that is forced without tools.

    fields: where the request's `tool_choice` is, for messages
    mode: one of `MODES`
    """
    if mode == "required" and not tools:
        raise fields.error("tool_choice", mode, "tools with it, of which one can be called")
    offered = () if mode == "none" else tools
    return Tools(offered, tools if mode == "required" else (), is_parallel=is_parallel)


def named(fields: Fields, tools: Sequence[Tool], name: str) -> Tools:
    """The tools of a request that names the function to call. Raises RequestError for an unknown one."""
    return Tools(tools, _kept(fields, tools, [name]), is_named=True)


def _kept(fields: Fields, tools: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    """The tools of these names."""
    known = {
        Fields(tool, f"tools[{i}]").object("function").text("name"): tool
        for i, tool in enumerate(tools)
    }
    for name in names:
        if name not in known:
            expected = f"one of {', '.join(known)}"[:200] if known else "tools with it"
            raise fields.error("tool_choice", name, expected)
    return [tool for name, tool in known.items() if name in names]


def asked_tools(fields: Fields, tools: Sequence[Tool]) -> Tools:
    """The fields tool_choice and parallel_tool_calls of OpenAI's clients, in both of its endpoints' spellings.

    Raises RequestError.
    """
    is_parallel = fields.flag("parallel_tool_calls", True)
    given = fields.get("tool_choice", "auto")
    if not isinstance(given, Mapping):
        if given not in MODES:
            raise fields.error("tool_choice", given, f"one of {', '.join(MODES)}, or an object")
        return choose(fields, tools, given, is_parallel=is_parallel)
    choice = fields.object("tool_choice")
    kind = choice.text("type")
    if kind == "function":
        return named(fields, tools, _name(choice))
    if kind != "allowed_tools":
        raise choice.error("type", kind, "'function' or 'allowed_tools'")
    inner = choice if choice.get("tools") is not None else choice.object("allowed_tools")
    mode = inner.text("mode", "auto")
    if mode not in ("auto", "required"):
        raise inner.error("mode", mode, "'auto' or 'required'")
    names = [_name(Fields(each, f"{inner.place}.tools")) for each in inner.items("tools")]
    return choose(fields, _kept(fields, tools, names), mode, is_parallel=is_parallel)


def _name(choice: Fields) -> str:
    """The name of a function, which chat completions nest."""
    holder = choice if choice.get("function") is None else choice.object("function")
    name: str = holder.text("name")
    return name


def response_format(fields: Fields) -> Form | None:
    """The field response_format, or vLLM's structured_outputs; None for any text. Raises RequestError."""
    extra = structured_outputs(fields)
    given = fields.object("response_format")
    form = form_of(given, given.object("json_schema"))
    if form is None:
        return extra
    if extra is not None:
        raise fields.error("structured_outputs", {}, "none with response_format")
    return form


def form_of(given: Fields, holder: Fields) -> Form | None:
    """A form by its type. given: has `type`; holder: has the schema, which is checked whatever the type is."""
    kind, schema = given.text("type", "text"), holder.get("schema", {"type": "object"})
    if not isinstance(schema, dict):
        raise holder.error("schema", schema, "an object")
    forms = {"text": None, "json_object": ANY_OBJECT, "json_schema": Form("json", schema)}
    if kind not in forms:
        raise given.error("type", kind, "'text', 'json_object' or 'json_schema'")
    return forms[kind]


def structured_outputs(fields: Fields) -> Form | None:
    """vLLM's field structured_outputs: one of `FORMS`; None if it is absent. Raises RequestError."""
    if fields.get("structured_outputs") is None:
        return None
    given = fields.object("structured_outputs")
    kinds = [kind for kind in FORMS if given.get(kind) is not None]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise fields.error("structured_outputs", found, f"exactly one of {', '.join(FORMS)}")
    [kind] = kinds
    given.finish()
    if kind == "json_object":
        return ANY_OBJECT if given.flag(kind) else None
    if kind == "json":
        return Form(kind, _schema(given))
    if kind == "choice":
        choices = given.items(kind)
        if not choices or not all(isinstance(text, str) and text for text in choices):
            raise given.error(kind, choices, "a list of strings, none of them empty")
        return Form(kind, choices)
    return Form(kind, given.text(kind))


def _schema(given: Fields) -> Any:
    """A JSON schema, or the text of one."""
    value = given.get("json")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise given.error("json", value, "a JSON schema or the text of one") from None


async def constrain(
    service: Service,
    chosen: Sampling,
    prompt: Rendered,
    form: Form | None,
    tools: Tools = Tools(),
) -> None:
    """Give the sampling of a request its grammar and its number of calls. Raises RequestError."""
    chosen.calls = tools.most
    if form is not None or tools.forced:
        made = await service.prepare(_grammar, service, prompt, form, tools)
        chosen.constraint = made


def _grammar(service: Service, prompt: Rendered, form: Form | None, tools: Tools) -> Grammar:
    calls, parallel = call_format(prompt.template), tools.most is None
    if tools.forced:
        if calls is None:
            text = "tool_choice: the model's chat template shows no known format of tool calls, so none can be forced"
            raise RequestError(text, param="tool_choice", code="unsupported")
        return service.grammars.tool_calls(
            calls, tools.forced, "required", parallel=parallel, reasoning=prompt.reasoning
        )
    assert form is not None
    instead = ToolCalls(calls, tools.offered, parallel) if calls and tools.offered else None
    return form.compiled(service.grammars, prompt.reasoning, instead)
