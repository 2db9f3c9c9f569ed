"""Chat templates: the prompt that a model's own Jinja template makes of a conversation."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from .budget import Budget, Limits
from .sandbox import Sandbox

__all__ = ["ChatTemplate", "ChatTemplates", "Limits"]

_KEY = "tokenizer.chat_template"
_TOOL_USE = "tool_use"
# What an expression of a template can raise, besides what jinja2 itself does.
_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """One template, compiled when first rendered."""

    def __init__(self, source: str, key: str = _KEY, limits: Limits | None = None) -> None:
        """key: the metadata key, for messages."""
        self._source, self._key, self._limits = source, key, limits or Limits()
        self._lock = threading.Lock()
        self._sandbox = Sandbox(self._limits)
        self._template: jinja2.Template | None = None

    def render(self, **variables: Any) -> str:
        """Text of the template; ValueError, naming the key, for what it raises and for passed limits."""
        with self._lock:
            try:
                self._sandbox.budget = Budget(self._limits)
                if self._template is None:
                    self._template = self._sandbox.prepare(self._source)
                return "".join(self._template.generate(**variables))
            except _ERRORS as error:
                raise ValueError(f"{self._key}: {_reason(error)}") from error


class ChatTemplates:
    """The templates of a file by name, "" being the default one; false if there are none."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        keys = {name: f"{_KEY}.{name}" if name else _KEY for name in sources}
        self._templates = {name: ChatTemplate(sources[name], keys[name]) for name in sources}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ChatTemplates:
        """Templates of `tokenizer.chat_template` and `tokenizer.chat_template.NAME`.

        Raises ValueError for one that is not a string.
        """
        sources = {}
        for key, source in metadata.items():
            if key == _KEY or key.startswith(f"{_KEY}."):
                if not isinstance(source, str):
                    raise ValueError(f"{key}: {type(source).__name__} found, expected a string")
                sources[key[len(_KEY) + 1 :]] = source
        return cls(sources)

    def __bool__(self) -> bool:
        return bool(self._templates)

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None, **variables: Any
    ) -> str:
        """The prompt for messages, by the template for tools if there are tools and such a template.

        Raises ValueError if there is no template, for messages that are none, and if rendering fails.
        """
        if not self._templates:
            raise ValueError(
                f"{_KEY}: missing, so the model has no chat format of its own; give it a plain prompt"
                " (--raw on the command line) or use a model that was made for chat"
            )
        first = next(iter(self._templates.values()))
        template = self._templates.get("", first)
        if tools:
            template = self._templates.get(_TOOL_USE, template)
        tools = list(tools) if tools else None
        return template.render(
            messages=check_messages(messages), tools=tools, documents=None, **variables
        )


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


def _reason(error: BaseException) -> str:
    """What went wrong in words; for some errors of templates their text alone says nothing."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    named = isinstance(error, (jinja2.TemplateError, ValueError)) and str(error)
    return str(error) if named else f"{type(error).__name__}: {error}"
