"""Chat templates: the prompt that a model's own Jinja template makes of a conversation.

messages.py  checks messages; joins the text parts of their content
process.py   the process that renders, its limits
worker.py    what runs in it: minijinja, with what transformers adds to Jinja
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from .messages import check_messages, check_tools, has_parts, joined, split_final
from .process import Limits, Renderer

__all__ = ["ChatTemplate", "ChatTemplates", "Limits", "split_final"]

_KEY = "tokenizer.chat_template"
_TOOL_USE = "tool_use"
# Names that every template can use; its other names are arguments of its own.
_STANDARD = frozenset(
    """messages tools documents add_generation_prompt bos_token eos_token cycler debug dict joiner lipsum
    namespace raise_exception range strftime_now""".split()
)


class ChatTemplate:
    """One template. source: its text."""

    def __init__(
        self,
        source: str,
        key: str = _KEY,
        limits: Limits | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        """key: the metadata key, for messages. renderer: one that several templates share."""
        self.source, self._key = source, key
        self._renderer = renderer or Renderer(limits)

    def render(self, **variables: Any) -> str:
        """Text of the template; ValueError, naming the key, for what it raises and for passed limits."""
        try:
            return self._renderer.render(self.source, variables)
        except ValueError as error:
            raise ValueError(f"{self._key}: {error}") from None

    @cached_property
    def names(self) -> set[str]:
        """Variables that the template uses, such as `enable_thinking`. Raises ValueError as `render`."""
        try:
            return self._renderer.names(self.source)
        except ValueError as error:
            raise ValueError(f"{self._key}: {error}") from None

    def check(self, arguments: Iterable[str]) -> None:
        """ValueError for an argument that the template does not use."""
        for name in sorted(arguments):
            if name not in self.names:
                known = ", ".join(sorted(self.names - _STANDARD)) or "none"
                raise ValueError(
                    f"{self._key}: does not use {name!r}; its own arguments are: {known}"
                )

    @cached_property
    def reads_parts(self) -> bool:
        """Whether the template writes the text of content that is a list of parts, and only that."""
        text, mark = "b7f1c0", "e39d52"
        part = {"type": "text", "text": text, "mark": mark}
        try:
            found = self.render(
                messages=[{"role": "user", "content": [part]}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token="",
                eos_token="",
            )
        except ValueError:
            return False
        return text in found and mark not in found


class ChatTemplates:
    """The templates of a file by name, "" being the default one; false if there are none."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        renderer = Renderer()
        self._templates = {
            name: ChatTemplate(source, f"{_KEY}.{name}" if name else _KEY, renderer=renderer)
            for name, source in sources.items()
        }

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
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Any = None,
        arguments: Mapping[str, Any],
        **variables: Any,
    ) -> str:
        """The prompt for messages, by the template for tools if there are tools and such a template.

        arguments: what this template may know besides; variables: what all may. Raises ValueError if
        there is no template, for bad messages, for arguments that the template does not use, and if
        rendering fails.
        """
        checked, tools = check_messages(messages), check_tools(tools)
        template = self.chosen(bool(tools))
        template.check(arguments)
        if has_parts(checked) and not template.reads_parts:
            checked = joined(checked)
        return template.render(
            **{"messages": checked, "tools": tools, "documents": None, **variables, **arguments}
        )

    def chosen(self, tools: bool) -> ChatTemplate:
        """The template for tools if `tools` and there is one, else the default one. Raises ValueError without any."""
        if not self._templates:
            raise ValueError(
                f"{_KEY}: missing, so the model has no chat format of its own; give it a plain prompt"
                " (--raw on the command line) or use a model that was made for chat"
            )
        first = next(iter(self._templates.values()))
        template = self._templates.get("", first)
        return self._templates.get(_TOOL_USE, template) if tools else template
