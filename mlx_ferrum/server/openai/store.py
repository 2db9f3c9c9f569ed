"""Responses that later requests may go on from, in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError

MOST = 1000  # responses
CHARACTERS = 64 << 20  # of all conversations


@dataclass
class Stored:
    """A response, and the conversation with it, without instructions."""

    response: dict[str, Any]
    messages: Sequence[dict[str, Any]]

    def __post_init__(self) -> None:
        self.size = sum(len(repr(message)) for message in self.messages)


class Store:
    """Keeps the responses that were used last."""

    def __init__(self, most: int = MOST, characters: int = CHARACTERS) -> None:
        self._most, self._characters = most, characters
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._size = 0

    def put(self, response: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """Keep a response; the oldest ones make room for it."""
        stored = Stored(response, messages)
        self._kept[response["id"]] = stored
        self._size += stored.size
        while self._kept and (len(self._kept) > self._most or self._size > self._characters):
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size

    def get(self, id: str, param: str | None = None) -> Stored:
        """A response. Raises RequestError with status 404 if it is not there, or no longer."""
        if id not in self._kept:
            raise RequestError(
                f"there is no response {id[:80]!r}, or no longer", status=404, param=param
            )
        self._kept.move_to_end(id)
        return self._kept[id]

    def delete(self, id: str) -> None:
        """Forget a response. Raises RequestError as `get`."""
        self._size -= self.get(id).size
        del self._kept[id]
