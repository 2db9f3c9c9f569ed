"""Decoding without Python between the kernels.

For one new token a model makes the same calls every time, on the same memory; only the token, the
position and what the caches hold differ, in ways that the library knows (replay.h). So the first token's
calls are recorded as the model makes them, and the library makes them again for the next ones. It is not
taken on trust: another token goes both ways first, and unless every bit agrees, all go through the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from ... import profile
from ...kernels.cpu import calls, native


class Cache(Protocol):
    """What a step reads and advances of a layer's cache."""

    offset: int
    stored: Any

    @property
    def room(self) -> int:
        """Further positions that fit where the storage lies."""


Body = Callable[[Any, list[Any]], Any]


class Step:
    """body(tokens, cache) for one token (1, 1) after another; any other shape goes through the model."""

    def __init__(self, body: Body, cache: list[Cache]) -> None:
        self._body, self._cache = body, cache
        self._recorded: _Recorded | None = None
        self._repeats = True  # until it is seen that the calls differ
        self._trusted = False

    def __call__(self, tokens: mx.array | np.ndarray) -> np.ndarray:
        """tokens: (1, 1) -> (1, 1, hidden)"""
        if tokens.shape != (1, 1) or not self._repeats or profile.is_active():
            return self._body(tokens, self._cache)
        token = int(np.asarray(tokens)[0, 0])
        if self._recorded is None or not self._recorded.fits(token):
            return self._record(tokens)
        if not self._trusted:
            return self._check(self._recorded, tokens)
        out = self._recorded.replay(token)
        for cache in self._cache:
            cache.offset += 1
        return out

    def _record(self, tokens: mx.array | np.ndarray) -> np.ndarray:
        offset = self._cache[0].offset
        with native.recording() as made:
            out: np.ndarray = self._body(tokens, self._cache)
        look_ups = [i for i, call in enumerate(made.calls) if isinstance(call, calls.Rows)]
        # where the token goes in; and two tokens with the same experts would not show a choice made outside
        self._repeats = len(look_ups) == 1 and _chooses_experts_itself(made.calls)
        if not self._repeats:
            return out
        self._recorded = _Recorded(made, look_ups[0], out, self._cache, offset)
        return out.copy()

    def _check(self, recorded: _Recorded, tokens: mx.array | np.ndarray) -> np.ndarray:
        """Both ways; the model goes last and overwrites what the other has put into the caches."""
        token = int(np.asarray(tokens)[0, 0])
        is_other = token != recorded.token
        repeated = recorded.replay(token)
        out = self._body(tokens, self._cache)
        self._repeats = repeated.tobytes() == out.tobytes()
        self._trusted = self._repeats and is_other
        return out


def _chooses_experts_itself(made: list[calls.Arguments]) -> bool:
    """Whether the ids of all experts lie where one of the calls writes them."""
    chosen = {call.ids for call in made if isinstance(call, calls.Route)}
    return all(
        call.ids in chosen for call in made if isinstance(call, (calls.Gather, calls.GatherDown))
    )


class _Recorded:
    """The calls for one token at one position, and where the caches lay then.

    look_up: the number of the call that looks up the token's embedding
    out: where the last call writes
    """

    def __init__(
        self,
        made: native.Recording,
        look_up: int,
        out: np.ndarray,
        cache: list[Cache],
        offset: int,
    ) -> None:
        self._made, self._out, self._cache, self._offset = made, out, cache, offset
        self._ids = made.memory[look_up][0]
        self._vocabulary = calls.Weight.from_address(made.calls[look_up].w).rows
        self._storage = [(c, c.stored) for c in cache]
        self._last = offset + min(c.room for c in cache)

    @property
    def token(self) -> int:
        """The one of the last time."""
        return int(self._ids[0, 0])

    def fits(self, token: int) -> bool:
        """Whether there is such a token, and the caches lie where they did and have room for its position."""
        position = self._cache[0].offset
        return (
            0 <= token < self._vocabulary
            and self._offset < position <= self._last
            and all(c.stored is stored and c.offset == position for c, stored in self._storage)
        )

    def replay(self, token: int) -> np.ndarray:
        """The hidden state for the next position; the caches' offsets are left to the caller."""
        self._ids[...] = token
        self._made.replay(self._cache[0].offset - self._offset)
        return self._out.copy()
