"""Caches in files: what a model has read, so that it need not read it again."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .cache import Cache
from .models.base import LanguageModel
from .state.attention import AttentionState
from .state.kinds import KV
from .state.paged import Part as Blocks
from .state.recurrent import RecurrentState
from .state.sequence import Sequence
from .state.slotted import Part
from .state.storage import Storage

FORMAT = "mlx_ferrum cache 3"
EARLIER = ("mlx_ferrum cache 1", "mlx_ferrum cache 2")
SNAPSHOTS = 2  # of recurrent states, besides those at the end: of the end of a prompt, and of a block before it
FLOATS = (mx.float16, mx.float32)  # that backends store as 16 bits


def save(path: str | Path, cache: Cache) -> None:
    """Write what a cache of one sequence holds, and the tokens that it was made of.

    The file appears whole or not at all. Raises ValueError for a cache of several sequences.
    """
    if len(cache.sequences) > 1:
        raise ValueError(f"the cache holds {len(cache.sequences)} sequences, expected one")
    cache.settle()
    arrays, firsts, tokens = dict[str, mx.array](), list[int](), list[int]()
    states: dict[str, str] = {}
    if cache.states is not None and cache.sequences:
        (sequence,) = cache.sequences
        tokens = sequence.tokens
        for group, part in zip(cache.states.groups, sequence.parts, strict=True):
            if isinstance(group, RecurrentState):
                firsts.append(0)
                slots = _slots(group, part, sequence)
                arrays |= _of_slots(group, list(slots.values()))
                states["states"] = json.dumps(list(slots))
            else:
                firsts.append(part.first)
                arrays |= _of_blocks(group, part, len(tokens))
    arrays["tokens"] = mx.array(np.asarray(tokens, dtype=np.int32))
    metadata = {
        "format": FORMAT,
        "model": cache.fingerprint,
        "kv_bits": _bits(cache),
        "layers": _layers(cache),
        "firsts": json.dumps(firsts),
        **states,
    }
    _write(Path(path), arrays, metadata)


def _slots(group: RecurrentState, part: Part, sequence: Sequence) -> dict[int, int]:
    """By their positions the slots that a file gets: of the last snapshots, and of the state at the end."""
    end, found = len(sequence.tokens), group.snapshots(part, sequence.keys)
    before = sorted(at for at in found if at < end)[-SNAPSHOTS:]
    return {at: found[at] for at in before} | ({end: part.source} if end else {})


def _of_slots(group: RecurrentState, slots: list[int]) -> dict[str, mx.array]:
    """The arrays of recurrent layers, one slot after another."""
    return {
        f"{layer}.{name}": _taken(x, slots)
        for layer, storage in group.storages.items()
        for name, x in storage.named.items()
    }


def _of_blocks(group: AttentionState, part: Blocks, count: int) -> dict[str, mx.array]:
    """The arrays of attention layers, one block after another. count: positions, as a pass may have reserved more"""
    size = group.block
    blocks = part.blocks[part.first : -(-count // size)]
    last = count - (count - 1) // size * size if count else 0
    return {
        f"{layer}.{name}": _blocks(x, blocks, last)
        for layer, storage in group.storages.items()
        for name, x in storage.named.items()
    }


def _taken(x: Any, places: list[int]) -> mx.array:
    """Some blocks or slots of storage, one after another."""
    return mx.array(x[np.array(places)] if isinstance(x, np.ndarray) else x[mx.array(places)])


def _blocks(x: Any, blocks: list[int], last: int) -> mx.array:
    """Some blocks of storage, one after another. Positions of the last one from `last` on are of other texts: 0."""
    found = _taken(x, blocks)
    if blocks:
        found[-1, :, last:] = 0
    return found


def _layers(cache: Cache) -> str:
    """What the layers keep, as text that differs where caches do not fit each other."""
    return json.dumps([vars(keeps) for keeps in cache.keeps])


def _bits(cache: Cache) -> str:
    """Of each number in keys and values; layers may differ."""
    found = {keeps.bits for keeps in cache.keeps if isinstance(keeps, KV)}
    return ", ".join(map(str, sorted(found)))


def _write(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Through a temporary file beside `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".cache-") as folder:
        temporary = Path(folder) / "new.safetensors"
        mx.save_safetensors(str(temporary), arrays, metadata)
        temporary.replace(path)


def load(path: str | Path, model: LanguageModel, *, kv_bits: int = 16) -> Cache:
    """Read a cache that `save` wrote for the same model and `kv_bits`.

    Raises ValueError if the file is of another kind or of another model, FileNotFoundError if there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no cache file {path}")
    try:
        loaded: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        arrays, metadata = loaded
        cache = model.make_cache(kv_bits=kv_bits)
        _check_metadata(metadata, cache)
        firsts = _listed("the first blocks", metadata["firsts"])
        at = _listed("the positions of states", metadata.get("states", "[]"))
        _restore(cache, arrays, firsts, at, model.args.vocab_size)
        mx.eval(cache.arrays)  # so that another thread can use them
        return cache
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_metadata(metadata: dict[str, str], cache: Cache) -> None:
    found = metadata.get("format")
    if found in EARLIER:
        raise ValueError(
            f"the format is {found!r} of an earlier version, expected {FORMAT!r}: make the file again"
        )
    wanted = {
        "format": FORMAT,
        "model": cache.fingerprint,
        "kv_bits": _bits(cache),
        "layers": _layers(cache),
    }
    for key, value in wanted.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"not a cache of this model: {key} is {metadata.get(key)!r}, expected {value!r}"
            )
    if "firsts" not in metadata:
        raise ValueError("the list of first blocks is missing")


def _listed(what: str, text: str) -> list[int]:
    """Whole numbers in JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or any(type(each) is not int for each in found):
        raise ValueError(f"expected {what} as a list in JSON, found {text[:60]!r}")
    return found


def _restore(
    cache: Cache,
    arrays: dict[str, mx.array],
    firsts: list[int],
    at: list[int],
    vocab_size: int,
) -> None:
    """Fill an empty cache. at: positions of recurrent states, the last one is the end"""
    tokens = arrays.get("tokens")
    if tokens is None or tokens.ndim != 1 or tokens.dtype != mx.int32:
        raise ValueError("the list of tokens is missing")
    ids = np.asarray(tokens).tolist()
    if not ids:
        return
    for token in (min(ids), max(ids)):
        if not 0 <= token < vocab_size:
            raise ValueError(f"token {token}, expected 0 to {vocab_size - 1}")
    states = cache.start()
    if len(firsts) != len(states.groups):
        raise ValueError(
            f"expected the first blocks of {len(states.groups)} groups, found {firsts}"
        )
    sequence = states.resume(ids, firsts)
    for group, part in zip(states.groups, sequence.parts, strict=True):
        places = (
            _restored(group, part, len(ids), at)
            if isinstance(group, RecurrentState)
            else part.blocks[part.first :]
        )
        group.grow()
        for layer, storage in group.storages.items():
            _fill(storage, places, arrays, layer)
    cache.sequences = [sequence]


def _restored(group: RecurrentState, part: Part, position: int, at: list[int]) -> list[int]:
    """The slots for the states at positions `at`. Raises ValueError unless these rise, and end with `position`."""
    rises = all(a < b for a, b in pairwise([0, *at]))
    if at[-1:] != [position] or len(at) > SNAPSHOTS + 1 or not rises:
        raise ValueError(
            f"expected states at {SNAPSHOTS} positions at most before {position}, then there, found {at}"
        )
    return [*(group.restore(part, each) for each in at[:-1]), part.source]


def _fill(storage: Storage, blocks: list[int], arrays: dict[str, mx.array], layer: int) -> None:
    for name, target in storage.named.items():
        shape = (len(blocks), *target.shape[1:])
        found = arrays.get(f"{layer}.{name}")
        if found is None or found.shape != shape:
            had = "none" if found is None else found.shape
            raise ValueError(f"{name} of layer {layer}: expected shape {shape}, found {had}")
        is_integer = target.dtype in (np.int8, mx.int8)
        if found.dtype not in ((mx.int8,) if is_integer else FLOATS):
            expected = "int8" if is_integer else "float16 or float32"
            raise ValueError(f"{name} of layer {layer}: expected {expected}, found {found.dtype}")
        if not is_integer and not mx.isfinite(found).all():
            raise ValueError(f"{name} of layer {layer}: expected finite numbers, found others")
        if isinstance(target, np.ndarray):
            target[np.array(blocks)] = np.asarray(found)
        else:
            target[mx.array(blocks)] = found.astype(target.dtype)
