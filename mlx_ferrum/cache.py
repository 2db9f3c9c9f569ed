"""Where keys and values live, and how attention reads them.

A cache owns attention: `attend` stores what is new and attends over what the cache holds, so that a model
has one line for it whatever the cache. It holds one array (2, batch, key-value heads, positions, width), keys
and values as `ops.rotate` makes them, so that storing them is one operation; either is a view.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from . import amounts, ops

STEP = 256  # positions by which storage grows
SLACK = 512  # positions before its window that a WindowCache keeps, to go back by
FORMAT = "mlx_ferrum cache 2"


class KVCache:
    """Keys and values of every position, contiguous; storage grows in steps."""

    def __init__(self) -> None:
        self.offset = 0
        self.stored: mx.array | None = None

    def __repr__(self) -> str:
        return f"KVCache({self.offset} positions, {amounts.size(self.nbytes)})"

    def attend(self, q: mx.array, new: mx.array, *, scale: float) -> mx.array:
        """q: (b, h, l, d), new: (2, b, g, l, width) -> (b, h, l, width), causal; zeros past a shorter value."""
        self.stored = _put(self.stored, self.offset, new)
        self.offset += new.shape[3]
        return ops.attend(q, *_split(self.stored, slice(0, self.offset), q), scale=scale)

    @property
    def state(self) -> list[mx.array]:
        """What is held, for mx.eval and for saving; empty at first."""
        return [] if self.stored is None else [self.stored[..., : self.offset, :]]

    def restore(self, state: list[mx.array], offset: int) -> None:
        """Take over a saved `state`. Raises ValueError if it does not hold `offset` positions."""
        if not state and not offset:
            return
        self.stored, self.offset = _checked(state, offset), offset

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return 0 if self.stored is None else self.stored.nbytes

    @property
    def room(self) -> int:
        """Further positions that fit where the storage lies."""
        return 0 if self.stored is None else self.stored.shape[3] - self.offset

    def trim(self, n: int) -> bool:
        """Forget the last n positions. False, and nothing changed, if that cannot be done."""
        if not 0 <= n <= self.offset:
            return False
        self.offset -= n
        return True


class WindowCache:
    """Keys and values of a sliding window: the last positions only, in order, in storage that is shifted when full.

    It keeps SLACK positions more than the window, so that it can go back by as many. Storage is at most
    window + SLACK + 2 STEP positions, and in a prefill as many more as the prompt's pieces are long.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.offset = 0
        self.first = 0  # position of the first stored key
        self.stored: mx.array | None = None

    def __repr__(self) -> str:
        seen = f"{self.offset} positions, the last {self.window} in sight"
        return f"WindowCache({seen}, {amounts.size(self.nbytes)})"

    def attend(self, q: mx.array, new: mx.array, *, scale: float) -> mx.array:
        """As KVCache.attend; a position sees itself and the window - 1 before it."""
        length = new.shape[3]
        self._make_room(length)
        self.stored = _put(self.stored, self.offset - self.first, new)
        self.offset += length
        seen = slice(self._oldest(length) - self.first, self.offset - self.first)
        return ops.attend(q, *_split(self.stored, seen, q), scale=scale, window=self.window)

    def _oldest(self, back: int) -> int:
        """The oldest position held that the ones from `offset - back` on see."""
        return max(self.first, self.offset - back - self.window + 1)

    def _make_room(self, length: int) -> None:
        """Drop what lies before window and slack, once storage would grow past them and a step."""
        if self.offset - self.first + length <= self.window + SLACK + STEP:
            return
        if self.stored is not None:
            (self.stored,) = self.state
            self.first = self._oldest(SLACK)

    @property
    def state(self) -> list[mx.array]:
        """The window and the slack before it, for mx.eval and for saving; empty at first."""
        if self.stored is None:
            return []
        held = slice(self._oldest(SLACK) - self.first, self.offset - self.first)
        return [self.stored[..., held, :]]

    def restore(self, state: list[mx.array], offset: int) -> None:
        """Take over a saved `state`. Raises ValueError if it does not hold the window before `offset`."""
        if not state and not offset:
            return
        held = state[0].shape[3] if state and state[0].ndim == 5 else 0
        least = min(offset, self.window - 1)
        self.stored = _checked(state, held if least <= held <= offset else least)
        self.first, self.offset = offset - held, offset

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return 0 if self.stored is None else self.stored.nbytes

    @property
    def room(self) -> int:
        """Further positions that fit where the storage lies."""
        return 0 if self.stored is None else self.stored.shape[3] - (self.offset - self.first)

    def trim(self, n: int) -> bool:
        """Forget the last n positions. False, and nothing changed, if the window before them is gone."""
        end = self.offset - n
        if n < 0 or end < 0 or self.first > max(0, end - self.window + 1):
            return False
        self.offset = end
        return True


Cache = KVCache | WindowCache


class Caches(list[Cache]):
    """What `make_cache` gives: a list of caches, one a layer, that shows itself in a line."""

    def __repr__(self) -> str:
        windows = {cache.window for cache in self if isinstance(cache, WindowCache)}
        some = f", windows of {', '.join(map(str, sorted(windows)))}" if windows else ""
        positions = self[0].offset if self else 0
        nbytes = sum(cache.nbytes for cache in self)
        return f"Caches({len(self)} layers{some}, {positions} positions, {amounts.size(nbytes)})"


def _put(stored: mx.array | None, at: int, new: Any) -> mx.array:
    """`stored` with `new` at position `at`, grown by whole steps if need be."""
    if stored is not None and _outer(stored) != _outer(new):
        raise ValueError(
            "the cache holds (sequences, heads, width) "
            f"{_outer(stored)}, expected {_outer(new)}: it is of another model or batch"
        )
    if stored is None or not _is_alike(stored, new) or at + new.shape[3] > stored.shape[3]:
        stored = _grown(stored, at, new)
    return ops.put(stored, at, new)


def _outer(x: Any) -> tuple[int, int, int]:
    """Sequences, key-value heads and width of keys and values: all sizes but the positions."""
    return x.shape[1], x.shape[2], x.shape[4]


def _is_alike(stored: mx.array, new: Any) -> bool:
    """Whether both are of the kind that the backend in use makes; a cache from a file is MLX's."""
    return type(stored) is type(new) and stored.dtype == new.dtype


def _grown(stored: mx.array | None, at: int, new: Any) -> mx.array:
    """The first `at` positions of `stored`, and room for `new`, of its kind."""
    kind: Any = np if isinstance(new, np.ndarray) else mx
    *outer, length, width = new.shape
    room = -(-(at + length) // STEP) * STEP
    held = [] if stored is None else [kind.array(stored[..., :at, :]).astype(new.dtype)]
    free = kind.zeros((*outer, room - at, width), dtype=new.dtype)
    grown: mx.array = kind.concatenate([*held, free], axis=3)
    return grown


def _split(stored: mx.array, held: slice, q: mx.array) -> tuple[mx.array, mx.array]:
    """Keys and values of the positions `held`; keys are as long as queries."""
    return stored[0, :, :, held, : q.shape[-1]], stored[1, :, :, held]


class CacheOwner(Protocol):
    """What `save` and `load` need of a model."""

    fingerprint: str

    def make_cache(self) -> list[Cache]:
        """Empty caches, one a layer."""


def check_caches(caches: Any, model: CacheOwner) -> None:
    """Raises ValueError unless `caches` are such as `model.make_cache()` gives, all at one position."""
    if not isinstance(caches, list | tuple):
        found = type(caches).__name__
        raise ValueError(f"the cache is a {found}, expected the list that model.make_cache() gives")
    wanted = model.make_cache()
    if len(caches) != len(wanted):
        raise ValueError(
            f"the cache has {len(caches)} layers, the model {len(wanted)}: it is of another model"
        )
    for i, (ours, theirs) in enumerate(zip(wanted, caches, strict=True)):
        if _kind(ours) != _kind(theirs):
            raise ValueError(f"cache {i} is {_kind(theirs)}, expected {_kind(ours)}")
    offsets = {cache.offset for cache in caches}
    if len(offsets) > 1:
        raise ValueError(
            f"the layers' caches hold {sorted(offsets)} positions, expected one number"
        )


@contextmanager
def even(caches: Sequence[Cache]) -> Iterator[None]:
    """If the block fails or is interrupted, positions that only some layers hold are taken back.

    So the caches can be used again; their common offset says what they hold.
    """
    try:
        yield
    except BaseException:
        least = min((cache.offset for cache in caches), default=0)
        for cache in caches:
            if cache.offset > least:
                cache.trim(cache.offset - least)
        raise


def _kind(cache: Any) -> str:
    window = getattr(cache, "window", None)
    return f"a {type(cache).__name__}" + (f" of {window} positions" if window else "")


def save(path: str | Path, caches: list[Cache], model: CacheOwner, tokens: list[int]) -> None:
    """Write what the caches hold.

    tokens: the token ids that they hold, in order
    The file appears whole or not at all. Raises ValueError if the caches do not hold just these tokens.
    """
    for i, cache in enumerate(caches):
        if cache.offset != len(tokens):
            raise ValueError(f"cache {i} holds {cache.offset} positions, expected {len(tokens)}")
    arrays = {"tokens": mx.array(np.asarray(tokens, dtype=np.int32))}
    arrays |= {str(i): mx.array(a) for i, cache in enumerate(caches) for a in cache.state}
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
        mx.eval(arrays)  # so that another thread can use them
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
        cache.restore([arrays[str(i)]] if str(i) in arrays else [], tokens.size)
    return caches, np.asarray(tokens).tolist()


def _checked(state: list[mx.array], positions: int) -> mx.array:
    shapes = [a.shape for a in state]
    if len(state) != 1 or len(shapes[0]) != 5 or shapes[0][0] != 2 or shapes[0][3] != positions:
        raise ValueError(
            f"expected keys and values of {positions} positions, found shapes {shapes}"
        )
    if not mx.issubdtype(state[0].dtype, mx.floating):
        raise ValueError(f"expected floating-point keys and values, found {state[0].dtype}")
    return state[0]
