"""The tool calls of a reply, and the tools that can be called."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .pieces import Piece
from .source import MalformedError, Source

_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """A new name for a call."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """The same, of nine letters and digits, as Mistral's templates want it."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The JSON schema of each tool's parameters by the tool's name.

    tools: `{"type": "function", "function": {"name": …, "parameters": …}}`, or functions by themselves
    Raises ValueError for one without a name, or whose parameters are not an object.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"a tool has the name {name!r}, expected a string")
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ValueError(f"tool {name!r}: parameters are {parameters!r}, expected an object")
        found[name] = parameters
    return found


class Calls:
    """Numbers the calls of a reply.

    tools: the schema of each tool's parameters
    is_open: whether arguments may come
    """

    def __init__(
        self, source: Source, tools: Mapping[str, Mapping[str, Any]], new_id: Callable[[], str]
    ) -> None:
        self.tools, self.is_open = tools, False
        self._source, self._new_id = source, new_id
        self._count = 0

    def begin(self, name: Any, id: str | None = None) -> Piece:
        """A call begins. Raises MalformedError if there is no such tool."""
        if not isinstance(name, str) or name not in self.tools:
            raise MalformedError
        self.is_open = True
        return Piece("call", index=self._count, id=id or self._new_id(), name=name)

    def arguments(self, text: str) -> Piece:
        """More of the JSON text of the open call's arguments."""
        return Piece("arguments", text, self._count)

    def close(self) -> None:
        """The open call is complete; what follows is no part of it."""
        self._source.mark = self._source.at
        self._count += 1
        self.is_open = False

    def fail(self) -> Piece:
        """The open call is malformed."""
        text = self._source.text[self._source.mark : self._source.at]
        piece = Piece("failed", text, self._count)
        self.close()
        return piece
