"""What a reply is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["text", "reasoning", "call", "arguments", "failed"]


@dataclass(frozen=True)
class Piece:
    """A part of a reply, in the order in which the model wrote it.

    kind: "text"; "reasoning"; "call", a tool call begins; "arguments", more of its JSON text; "failed", the call was
        malformed after all: `text` is all of it as the model wrote it, and its earlier pieces are void
    text: of "text", "reasoning", "arguments" and "failed"
    index: of the call in the reply, from 0; -1 where there is none
    id, name: of "call"
    """

    kind: Kind
    text: str = ""
    index: int = -1
    id: str = ""
    name: str = ""


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces with neighbours of one kind, text and call joined."""
    found: list[Piece] = []
    for piece in pieces:
        if found and _continues(found[-1], piece):
            found[-1] = replace(found[-1], text=found[-1].text + piece.text)
        elif piece.text or piece.kind == "call":
            found.append(piece)
    return found


def _continues(last: Piece, piece: Piece) -> bool:
    is_same = last.kind == piece.kind and last.index == piece.index
    return is_same and piece.kind in ("text", "reasoning", "arguments")
