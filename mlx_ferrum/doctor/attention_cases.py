"""The self-test's cases of attention: ragged batches over keys and values in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..batch import Batch, Place
from ..state.kinds import KV
from ..state.model import ModelStates
from .case import Case, Convert, Operations

HEADS, GROUPS, SIZE = 6, 3, 64
VALUE_SIZE = 48
# New rows of each sequence, and the positions that it held before.
SHAPES: list[tuple[Sequence[tuple[int, int]], int | None]] = [
    ([(1, 0)], None),
    ([(1, 36)], None),
    ([(5, 18), (1, 70), (1, 3)], None),
    ([(1, 36), (1, 90)], 9),
    ([(7, 13), (40, 33)], 4),
]
QUERIES, KEYS, VALUES = range(3)  # what `append` makes


def cases(rng: np.random.Generator, type: str) -> Iterator[Case]:
    """type: the name of the cases' group."""
    for rows, window in SHAPES:
        for bits in (16, 8):
            yield _attend(rng, type, rows, KV(GROUPS, SIZE, VALUE_SIZE, window, bits))
    for interleaved in (False, True):
        for pairs in (32, 20):
            for part in (QUERIES, KEYS, VALUES):
                yield _append(rng, type, pairs, interleaved, part, normed=False)
                yield _append(rng, type, pairs, interleaved, part, normed=True)
    yield _append(rng, type, 32, False, QUERIES, normed=True, gated=True)


def _attend(rng: np.random.Generator, type: str, rows: Sequence[tuple[int, int]], kv: KV) -> Case:
    past = _drawn(rng, sum(held for _, held in rows))
    new = _drawn(rng, sum(count for count, _ in rows))
    frequencies = np.zeros(1, np.float32)  # nothing turns

    def compute(run: Operations, array: Convert) -> Any:
        batch = _batch(run, kv, [held for _, held in rows], [count for count, _ in rows])
        for part, drawn in zip(batch, (past, new), strict=True):
            if part is not None:
                q = run.append(*map(array, drawn), part, array(frequencies), interleaved=False)
        return run.attend(q, part, scale=0.125)

    shape = f"(new, held) {list(rows)}, window {kv.window}, {kv.bits} bits"
    return Case("attend" if kv.bits == 16 else "attend, 8 bits", type, shape, compute)


def _append(
    rng: np.random.Generator,
    type: str,
    pairs: int,
    interleaved: bool,
    part: int,
    *,
    normed: bool,
    gated: bool = False,
) -> Case:
    """gated: each query is followed by a gate"""
    drawn, weights = _drawn(rng, 10), rng.normal(size=(2, SIZE)).astype(np.float32)
    frequencies = (1000.0 ** -np.linspace(0, 1, pairs)).astype(np.float32)
    if gated:
        drawn[0] = np.concatenate([drawn[0], rng.normal(size=drawn[0].shape)], -1, dtype=np.float32)

    def compute(run: Operations, array: Convert) -> Any:
        _, at = _batch(run, KV(GROUPS, SIZE, VALUE_SIZE), [3, 700], [6, 4])
        turned = run.append(
            *map(array, drawn),
            at,
            array(frequencies),
            interleaved=interleaved,
            magnitude=1.3,
            norms=(*map(array, weights), 1e-5) if normed else None,
        )
        if part == QUERIES:
            return turned
        stored = np.array(at.storage.named["keys" if part == KEYS else "values"])
        slots, size = at.paging.slots, at.storage.size
        return array(stored[slots // size, :, slots % size].astype(np.float32))

    what = ("queries", "keys", "values")[part]
    kind = "interleaved" if interleaved else "halves"
    shape = f"{what} of 10 rows, {pairs} pairs, {kind}{', normed' * normed}{', gated' * gated}"
    return Case("append", type, shape, compute)


def _drawn(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Queries, keys and values of n rows, which half precision holds."""
    sizes = ((HEADS, SIZE), (GROUPS, SIZE), (GROUPS, VALUE_SIZE))
    drawn = (rng.normal(size=(n, *size)) for size in sizes)
    return [x.astype(np.float16).astype(np.float32) for x in drawn]


def _batch(run: Operations, kv: KV, held: list[int], new: list[int]) -> tuple[Place | None, Place]:
    """The positions that the sequences hold, if any, and the new ones after them, for a model of one layer."""
    states = ModelStates([kv], run.allocate)
    texts = [states.begin() for _ in held]

    def batch(counts: list[int]) -> Batch:
        rows = [(text, count) for text, count in zip(texts, counts, strict=True) if count]
        return states.batch(rows, np.arange(sum(counts)))  # blocks of equal tokens would be shared

    if not any(held):
        return None, batch(new).layer(0)
    past = batch(held)
    past.advance()
    return past.layer(0), batch(new).layer(0)
