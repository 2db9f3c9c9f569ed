"""Where keys and values live, and how attention reads them.

A cache owns attention: `attend` stores the new keys and values and attends over what the cache holds,
so that a model has one line for it whatever the cache. Arrays are (batch, key-value heads, positions,
head size).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from . import ops

STEP = 256  # positions by which storage grows
FORMAT = "mlx_ferrum cache 1"


class KVCache:
    """Keys and values of every position, contiguous; storage grows in steps."""

    def __init__(self) -> None:
        self.offset = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """q: (b, h, l, d), k: (b, g, l, d), v: (b, g, l, dv) -> (b, h, l, dv), causal."""
        self.keys = _put(self.keys, self.offset, k)
        self.values = _put(self.values, self.offset, v)
        self.offset += k.shape[2]
        held = slice(0, self.offset)
        return ops.attend(q, self.keys[:, :, held], self.values[:, :, held], scale=scale)

    @property
    def state(self) -> list[mx.array]:
        """The held keys and values, for mx.eval and for saving; empty at first."""
        if self.keys is None or self.values is None:
            return []
        return [self.keys[:, :, : self.offset], self.values[:, :, : self.offset]]

    def restore(self, state: list[mx.array], offset: int) -> None:
        """Take over a saved `state`. Raises ValueError if it does not hold `offset` positions."""
        if not state and not offset:
            return
        keys, values = _checked(state, offset)
        self.keys, self.values, self.offset = keys, values, offset

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return sum(a.nbytes for a in (self.keys, self.values) if a is not None)

    @property
    def room(self) -> int:
        """Further positions that fit where the storage lies."""
        return 0 if self.keys is None else self.keys.shape[2] - self.offset

    def trim(self, n: int) -> bool:
        """Forget the last n positions. False, and nothing changed, if that cannot be done."""
        if not 0 <= n <= self.offset:
            return False
        self.offset -= n
        return True


class WindowCache:
    """Keys and values of a sliding window: the last positions only, in order, in storage that is shifted when full."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.offset = 0
        self.first = 0  # position of the first stored key
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """As KVCache.attend; a position sees itself and the window - 1 before it."""
        self._make_room(k.shape[2])
        self.keys = _put(self.keys, self.offset - self.first, k)
        self.values = _put(self.values, self.offset - self.first, v)
        self.offset += k.shape[2]
        seen = slice(self._oldest_seen(k.shape[2]) - self.first, self.offset - self.first)
        keys, values = self.keys[:, :, seen], self.values[:, :, seen]
        return ops.attend(q, keys, values, scale=scale, window=self.window)

    def _oldest_seen(self, length: int) -> int:
        """The oldest position that the last `length` positions see."""
        return max(self.first, self.offset - length - self.window + 1)

    def _make_room(self, length: int) -> None:
        """Drop what no later position sees, once storage would grow past the window and a step."""
        if self.keys is None or self.values is None:
            return
        if self.offset - self.first + length <= self.window + STEP:
            return
        start = self._oldest_seen(0) - self.first
        held = slice(start, self.offset - self.first)
        self.keys, self.values = self.keys[:, :, held], self.values[:, :, held]
        self.first += start

    @property
    def state(self) -> list[mx.array]:
        """The keys and values that later positions can see, for mx.eval and for saving; empty at first."""
        if self.keys is None or self.values is None:
            return []
        held = slice(self._oldest_seen(0) - self.first, self.offset - self.first)
        return [self.keys[:, :, held], self.values[:, :, held]]

    def restore(self, state: list[mx.array], offset: int) -> None:
        """Take over a saved `state`. Raises ValueError if it does not hold the window before `offset`."""
        if not state and not offset:
            return
        held = min(offset, self.window - 1)
        self.keys, self.values = _checked(state, held)
        self.first, self.offset = offset - held, offset

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return sum(a.nbytes for a in (self.keys, self.values) if a is not None)

    @property
    def room(self) -> int:
        """Further positions that fit where the storage lies."""
        return 0 if self.keys is None else self.keys.shape[2] - (self.offset - self.first)

    def trim(self, n: int) -> bool:
        """Forget the last n positions. False, and nothing changed, if the window before them is gone."""
        end = self.offset - n
        if n < 0 or end < 0 or self.first > max(0, end - self.window + 1):
            return False
        self.offset = end
        return True


Cache = KVCache | WindowCache


def _put(stored: mx.array | None, at: int, new: Any) -> mx.array:
    """`stored` with `new` at position `at`, grown by whole steps if need be."""
    # arrays are of the kind that the backend in use makes; a cache from a file is MLX's
    kind: Any = np if isinstance(new, np.ndarray) else mx
    end = at + new.shape[2]
    if stored is None or end > stored.shape[2] or type(stored) is not type(new):
        b, g, _, d = new.shape
        room, dtype = -(-end // STEP) * STEP, ops.cache_dtype(new)
        held = [] if stored is None else [kind.array(stored[:, :, :at]).astype(dtype)]
        grown = kind.zeros((b, g, room - at, d), dtype=dtype)
        stored = kind.concatenate([*held, grown], axis=2)
    return ops.put(stored, at, new)


class CacheOwner(Protocol):
    """What `save` and `load` need of a model."""

    fingerprint: str

    def make_cache(self) -> list[Cache]:
        """Empty caches, one a layer."""


def save(path: str | Path, caches: list[Cache], model: CacheOwner, tokens: list[int]) -> None:
    """Write what the caches hold.

    tokens: the token ids that they hold, in order
    The file appears whole or not at all. Raises ValueError if the caches do not hold just these tokens.
    """
    for i, cache in enumerate(caches):
        if cache.offset != len(tokens):
            raise ValueError(f"cache {i} holds {cache.offset} positions, expected {len(tokens)}")
    arrays = {"tokens": mx.array(np.asarray(tokens, dtype=np.int32))}
    for i, cache in enumerate(caches):
        arrays |= {f"{i}.{j}": mx.array(array) for j, array in enumerate(cache.state)}
    kinds = json.dumps([type(cache).__name__ for cache in caches])
    _write(Path(path), arrays, {"format": FORMAT, "model": model.fingerprint, "kinds": kinds})


def _write(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Through a temporary file beside `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".cache-") as folder:
        temporary = Path(folder) / "new.safetensors"
        mx.save_safetensors(str(temporary), arrays, metadata)
        temporary.replace(path)


def load(path: str | Path, model: CacheOwner) -> tuple[list[Cache], list[int]]:
    """Read caches that `save` wrote for the same model: the caches and the token ids that they hold.

    Raises ValueError if the file is of another kind or of another model, FileNotFoundError if there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no cache file {path}")
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        return _restored(arrays, metadata, model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _restored(
    arrays: dict[str, mx.array], metadata: dict[str, str], model: CacheOwner
) -> tuple[list[Cache], list[int]]:
    caches = model.make_cache()
    wanted = {
        "format": FORMAT,
        "model": model.fingerprint,
        "kinds": json.dumps([type(cache).__name__ for cache in caches]),
    }
    for key, value in wanted.items():
        found: Any = metadata.get(key)
        if found != value:
            raise ValueError(f"not a cache of this model: {key} is {found!r}, expected {value!r}")
    tokens = arrays.get("tokens")
    if tokens is None or tokens.ndim != 1 or tokens.dtype != mx.int32:
        raise ValueError("the list of tokens is missing")
    for i, cache in enumerate(caches):
        state = [arrays[name] for name in (f"{i}.0", f"{i}.1") if name in arrays]
        cache.restore(state, tokens.size)
    return caches, np.asarray(tokens).tolist()


def _checked(state: list[mx.array], positions: int) -> list[mx.array]:
    shapes = [a.shape for a in state]
    if len(state) != 2 or any(len(s) != 4 or s[2] != positions for s in shapes):
        raise ValueError(
            f"expected keys and values of {positions} positions, found shapes {shapes}"
        )
    if not all(mx.issubdtype(a.dtype, mx.floating) for a in state):
        raise ValueError(
            f"expected floating-point keys and values, found {[a.dtype for a in state]}"
        )
    return state
