"""Whole replies from their parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlx_ferrum.replies import Piece as Part

from .reply import Piece


@dataclass
class Call:
    """A tool call; arguments are JSON."""

    id: str
    name: str
    arguments: str = ""


class Said:
    """A whole reply: text, reasoning, and tool calls by their index."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.text = self.reasoning = ""
        self.calls: dict[int, Call] = {}
        for part in parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Take the next part. A call that is malformed after all becomes text."""
        if part.kind == "reasoning":
            self.reasoning += part.text
        elif part.kind == "call":
            self.calls[part.index] = Call(part.id, part.name)
        elif part.kind == "arguments":
            self.calls[part.index].arguments += part.text
        else:
            self.calls.pop(part.index, None)
            self.text += part.text


def whole_calls(parts: Iterable[Part]) -> int:
    """How many calls begin, without those that turn out malformed."""
    return sum({"call": 1, "failed": -1}.get(part.kind, 0) for part in parts)


def parts_of(piece: Piece) -> list[Part]:
    """The parts of a piece; its text where nothing takes it apart."""
    return piece.parts or ([Part("text", piece.text)] if piece.text else [])
