"""Messages of OpenAI's clients as a chat template reads them, and the prompt that it makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_ferrum.generate.prompt import encode_prompt
from mlx_ferrum.notice import warn
from mlx_ferrum.replies import ReplyParser, make_parser, reasoning_tags
from mlx_ferrum.structured import Reasoning
from mlx_ferrum.tokenizer import Tokenizer

from ..errors import RequestError
from ..fields import Fields

TEXT_PARTS = ("text", "input_text", "output_text")
NO_TEXT = (
    "images",
    "audio",
    "function_call",
)  # of a message: Ollama's pictures, OpenAI's speech and older calls
SET = ("messages", "tools", "add_generation_prompt", "continue_final_message")


def messages(fields: Fields) -> list[dict[str, Any]]:
    """The field `messages`. Raises RequestError for parts that are not text."""
    given = fields.items("messages")
    if not given:
        raise fields.error("messages", given, "at least one message")
    return [_message(Fields(each, f"messages[{i}]"), each) for i, each in enumerate(given)]


def _message(fields: Fields, given: Mapping[str, Any]) -> dict[str, Any]:
    role = fields.text("role")
    for name in NO_TEXT:
        fields.refuse(name)
    found = {key: value for key, value in given.items() if value is not None}
    found["role"] = "system" if role == "developer" else role
    content = fields.get("content")
    if isinstance(content, list):
        content = text_of(fields, content)
    if content is not None and not isinstance(content, str):
        raise fields.error("content", content, "a string or a list of parts")
    found["content"] = content or ""
    if "tool_calls" in found:
        found["tool_calls"] = [_call(call) for call in fields.items("tool_calls")]
    return found


def text_of(fields: Fields, parts: Sequence[Any]) -> str:
    """The text of parts. Raises RequestError for a part of another kind."""
    found = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else part
        if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise fields.error("content", kind, "parts of type 'text'")
        found.append(part["text"])
    return "".join(found)


def _call(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates expect them, not the JSON of one."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    is_object = isinstance(arguments, dict)
    return {**call, "function": {**function, "arguments": arguments}} if is_object else call


def template_arguments(fields: Fields) -> dict[str, Any]:
    """What a request gives to the template: chat_template_kwargs."""
    given = fields.get("chat_template_kwargs", {})
    checked = Fields(given, "chat_template_kwargs")
    for name in SET:
        checked.refuse(name)
    return {name: value for name, value in given.items() if name not in SET}


def with_effort(
    tokenizer: Tokenizer, arguments: dict[str, Any], effort: str | None, tools: bool
) -> None:
    """Add what a template understands of an effort: the word itself, or whether the model thinks at all."""
    if effort is None:
        return
    names = tokenizer.template(tools).names
    if "reasoning_effort" in names:
        arguments.setdefault("reasoning_effort", effort)
    elif "enable_thinking" in names:
        arguments.setdefault("enable_thinking", effort not in ("none", "minimal"))
    else:
        warn("reasoning_effort is ignored: the model's chat template has no such choice")


@dataclass(frozen=True)
class Rendered:
    """A prompt that the template made.

    text, ids: the prompt
    template: its text, which tells how the model reasons and calls tools
    tools: that the model was told of
    """

    text: str
    ids: list[int]
    template: str
    tools: Sequence[Mapping[str, Any]]

    def parser(self) -> ReplyParser | None:
        """What takes a reply apart; None if there is nothing to look for. Raises ValueError for bad tools."""
        found = make_parser(self.template, self.text, self.tools)
        return found if found.markers else None

    @property
    def reasoning(self) -> Reasoning | None:
        """What may come before text that follows a grammar."""
        tags = reasoning_tags(self.template)
        if tags is None:
            return None
        is_open = self.text.rstrip().endswith(tags.open.rstrip())
        return Reasoning(tags.open, tags.close, is_open)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    arguments: Mapping[str, Any],
    *,
    effort: str | None = None,
    continues: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """The prompt that the template makes. continues: the last message begins the reply.

    Raises ValueError if the template refuses, RequestError if the model has none.
    """
    if not tokenizer.has_chat_template:
        text = "the model has no chat template, so it takes no messages: send it a plain prompt (/v1/completions)"
        raise RequestError(text, code="unsupported")
    arguments = dict(arguments)
    with_effort(tokenizer, arguments, effort, bool(tools))
    text = tokenizer.apply_chat_template(
        messages, tools=tools or None, continue_final_message=continues, **arguments
    )
    ids = encode_prompt(tokenizer, text)
    made = Rendered(text, ids, tokenizer.template(bool(tools)).source, tools)
    made.parser()  # raises for bad tools
    return made
