"""The cases of the self-test: every operation over every block type, at a few odd shapes.

A case computes the same thing with any operations: those of the backend in use, or the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..blocks import SUPPORTED, Block
from ..tensor import QTensor
from . import expert_cases
from .case import Case, Convert, Operations
from .weights import random_tensor

FEW_ROWS = 8  # of x: from 9 on, backends may have kernels of other exactness
ARRAYS = "arrays"  # the type of cases without weights
_LEAST_K = 37  # of types whose block is one number


def groups() -> Iterator[tuple[str, list[Case]]]:
    """(type, its cases) for each block type, then for the operations without weights."""
    for i, block in enumerate(SUPPORTED):
        rng = np.random.default_rng(i)
        yield block.name, [*_of_type(rng, block), *expert_cases.of_type(rng, block)]
    rng = np.random.default_rng(len(SUPPORTED))
    yield ARRAYS, [*_of_arrays(rng), *expert_cases.of_arrays(rng, ARRAYS)]


def _of_type(rng: np.random.Generator, block: type[Block]) -> Iterator[Case]:
    k = block.weights if block.weights > 1 else _LEAST_K
    for n, rows, width in [(1, 1027, k), (3, 5, 3 * k), (9, 70, k), (33, 35, 2 * k)]:
        yield _matmul(rng, random_tensor(rng, block, rows, width), n)
    other = SUPPORTED[(SUPPORTED.index(block) + 1) % len(SUPPORTED)]
    yield _matmuls(rng, [(block, 40), (other, 7), (block, 12)])
    for n, rows, act in [(1, 515, "silu"), (9, 21, "gelu")]:
        pair = random_tensor(rng, block, rows, 2 * k), random_tensor(rng, block, rows, 2 * k)
        yield _gate_up(rng, *pair, n, act)
    w = random_tensor(rng, block, 41, 3 * k)
    ids = np.array([[0, 40, 7], [7, 7, 1]], np.int32)
    yield Case("rows", block.name, _shape(w), lambda run, array: run.rows(w, array(ids), 25.3))
    yield Case("dequantize", block.name, _shape(w), lambda run, _: run.dequantize(w))


def _of_arrays(rng: np.random.Generator) -> Iterator[Case]:
    for length, held, window in [
        (1, 1, None),
        (1, 37, None),
        (5, 23, None),
        (1, 37, 9),
        (7, 20, 4),
    ]:
        yield _put(rng, length, held)
        yield _attend(rng, length, held, window)
    for n, d in [(1, 257), (3, 64), (5, 5120)]:
        yield _rms_norm(rng, n, d, add=False)
        yield _rms_norm(rng, n, d, add=True)
    for interleaved in (False, True):
        for pairs in (32, 20):
            yield _norm_rope(rng, pairs, interleaved, normed=False)
            yield _norm_rope(rng, pairs, interleaved, normed=True)


def _matmul(rng: np.random.Generator, w: QTensor, n: int) -> Case:
    x, bias, add = _normal(rng, n, w.shape[1]), _normal(rng, w.rows), _normal(rng, n, w.rows)
    op = "matmul" if n <= FEW_ROWS else "matmul, 9+ rows"

    def compute(run: Operations, array: Convert) -> Any:
        return run.matmul(array(x), w, bias=array(bias), add=array(add))

    return Case(op, w.block.name, f"x ({n}, {w.shape[1]}), w {_shape(w)}", compute)


def _matmuls(rng: np.random.Generator, parts: list[tuple[type[Block], int]]) -> Case:
    k = max(_LEAST_K if block.weights == 1 else block.weights for block, _ in parts)
    if any(k % block.weights for block, _ in parts):
        k = max(block.weights for block, _ in parts)
    ws = [random_tensor(rng, block, rows, k) for block, rows in parts]
    x, bias = _normal(rng, 2, k), _normal(rng, ws[1].rows)

    def compute(run: Operations, array: Convert) -> Any:
        products = run.matmuls(array(x), ws, [None, array(bias), None])
        return np.concatenate([np.array(ops.to_mlx(y)) for y in products], axis=-1)

    shapes = " ".join(f"{w.block.name} {_shape(w)}" for w in ws)
    return Case("matmuls", parts[0][0].name, f"x (2, {k}), w {shapes}", compute)


def _gate_up(rng: np.random.Generator, gate: QTensor, up: QTensor, n: int, act: str) -> Case:
    x = _normal(rng, n, gate.shape[1])
    op = "gate_up" if n <= FEW_ROWS else "gate_up, 9+ rows"
    shape = f"x ({n}, {gate.shape[1]}), w {_shape(gate)}, {act}"
    return Case(op, gate.block.name, shape, lambda run, array: run.gate_up(array(x), gate, up, act))


def _put(rng: np.random.Generator, length: int, held: int) -> Case:
    new = _normal(rng, 2, 3, length, 64)

    def compute(run: Operations, array: Convert) -> Any:
        return _stored(run, array, new, held + 1, held - length)

    return Case("put", ARRAYS, f"{new.shape} at {held - length} of {held + 1}", compute)


def _attend(rng: np.random.Generator, length: int, held: int, window: int | None) -> Case:
    q, k, v = (_normal(rng, 2, heads, n, 64) for heads, n in ((6, length), (2, held), (2, held)))

    def compute(run: Operations, array: Convert) -> Any:
        keys, values = (_stored(run, array, x, held + 3, 0)[:, :, :held] for x in (k, v))
        return run.attend(array(q), keys, values, scale=0.125, window=window)

    return Case("attend", ARRAYS, f"q {q.shape}, k {k.shape}, window {window}", compute)


def _stored(run: Operations, array: Convert, new: np.ndarray, room: int, at: int) -> Any:
    """Keys or values put at a position of an empty cache."""
    b, g, _, d = new.shape
    empty = array(np.zeros((b, g, room, d), np.float32)).astype(run.cache_dtype(array(new)))
    return run.put(empty, at, array(new))


def _rms_norm(rng: np.random.Generator, n: int, d: int, *, add: bool) -> Case:
    x, weight, residual = 5 * _normal(rng, n, d), _normal(rng, d), _normal(rng, n, d)

    def compute(run: Operations, array: Convert) -> Any:
        added = array(residual) if add else None
        return run.rms_norm(array(x), array(weight), 1e-6, add=added)

    return Case("rms_norm", ARRAYS, f"x ({n}, {d}){' and a residual' * add}", compute)


def _norm_rope(rng: np.random.Generator, pairs: int, interleaved: bool, *, normed: bool) -> Case:
    x, weight = _normal(rng, 2, 5, 3, 64), _normal(rng, 64)
    frequencies = (1000.0 ** -np.linspace(0, 1, pairs)).astype(np.float32)

    def compute(run: Operations, array: Convert) -> Any:
        return run.norm_rope(
            array(x),
            array(frequencies),
            offset=array(np.array([3, 700], np.int32)),
            interleaved=interleaved,
            magnitude=1.3,
            norm=(array(weight), 1e-5) if normed else None,
        )

    kind = "interleaved" if interleaved else "halves"
    shape = f"x {x.shape}, {pairs} pairs, {kind}{', normed' * normed}"
    return Case("norm_rope", ARRAYS, shape, compute)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _shape(w: QTensor) -> str:
    return f"({w.rows}, {w.shape[1]})"
