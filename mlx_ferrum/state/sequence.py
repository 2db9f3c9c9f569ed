"""One text that is read or written, and the chained hashes of its blocks."""

from __future__ import annotations

import hashlib
import struct
from collections import abc
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class Sequence:
    """What `States.begin` and `States.fork` give; only States changes it. One that nobody holds any more is freed.

    tokens: the known token ids from position 0 on; at most `position`
    position: rows computed, which is also the index of the next one
    parts: one for each state
    keys: chained hashes of the full blocks of `tokens`
    reserved: rows below this position may be computed
    owner: the States that it belongs to; None once it is freed
    """

    tokens: list[int]
    position: int
    parts: list[Any]
    keys: list[bytes]
    reserved: int
    owner: Any

    def __del__(self) -> None:
        if self.owner is not None:
            self.owner.free(self)

    def __repr__(self) -> str:
        freed = "" if self.owner is not None else ", freed"
        return f"Sequence({self.position} positions, {len(self.tokens)} tokens known{freed})"


def extend_keys(keys: list[bytes], tokens: abc.Sequence[int], block: int) -> None:
    """Append the chained hashes of the full blocks of `tokens` that `keys` lacks.

    A hash covers its block's token ids and the hash before it, hence the whole text up to the block's end.
    Prompts are untrusted, so the hash is a cryptographic one.
    """
    parent = keys[-1] if keys else b""
    for start in range(len(keys) * block, len(tokens) - block + 1, block):
        ids = struct.pack(f"<{block}q", *tokens[start : start + block])
        parent = hashlib.blake2b(parent + ids, digest_size=16).digest()
        keys.append(parent)
