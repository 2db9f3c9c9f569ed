"""The cases of the self-test: every operation over every block type, at a few odd shapes.

A case computes the same thing with any operations: those of the backend in use, or the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import ops
from ..blocks import Q4_K, SUPPORTED, Block
from ..tensor import QTensor
from . import attention_cases, expert_cases, recurrent_cases
from .case import Case, Convert, Operations
from .weights import random_tensor

FEW_ROWS = 8  # of x: from 9 on, backends may have kernels of other exactness
ARRAYS = "arrays"  # the type of cases without weights
_NORMED = ", normed"
_LEAST_K = 37  # of types whose block is one number


def groups() -> Iterator[tuple[str, list[Case]]]:
    """(type, its cases) for each block type, then for the operations without weights."""
    for i, block in enumerate(SUPPORTED):
        rng = np.random.default_rng(i)
        yield block.name, [*_of_type(rng, block), *expert_cases.of_type(rng, block)]
    rng = np.random.default_rng(len(SUPPORTED))
    yield (
        ARRAYS,
        [
            *_of_arrays(rng),
            *attention_cases.cases(rng, ARRAYS),
            *expert_cases.of_arrays(rng, ARRAYS),
            *recurrent_cases.cases(rng, ARRAYS),
        ],
    )


def _of_type(rng: np.random.Generator, block: type[Block]) -> Iterator[Case]:
    k = block.weights if block.weights > 1 else _LEAST_K
    for n, rows, width in [(1, 1027, k), (3, 5, 3 * k), (9, 70, k), (33, 35, 2 * k)]:
        yield _matmul(rng, random_tensor(rng, block, rows, width), n)
    if block is Q4_K:  # several steps of GPUs' kernels, and as many rows as share one
        yield _matmul(rng, random_tensor(rng, block, 1027, 9 * k), 8)
        pair = random_tensor(rng, block, 21, 9 * k), random_tensor(rng, block, 21, 9 * k)
        yield _gate_up(rng, *pair, 8, "silu", True)
    other = SUPPORTED[(SUPPORTED.index(block) + 1) % len(SUPPORTED)]
    for normed in (False, True):
        yield _matmuls(rng, [(block, 40), (other, 7), (block, 12)], normed)
    for n, rows, act, normed in [
        (1, 515, "silu", True),
        (3, 21, "silu", False),
        (9, 21, "gelu", True),
    ]:
        pair = random_tensor(rng, block, rows, 2 * k), random_tensor(rng, block, rows, 2 * k)
        yield _gate_up(rng, *pair, n, act, normed)
    yield _norm_matmul(rng, random_tensor(rng, block, 21, 3 * k))
    w = random_tensor(rng, block, 41, 3 * k)
    ids = np.array([[0, 40, 7], [7, 7, 1]], np.int32)
    yield Case("rows", block.name, _shape(w), lambda run, array: run.rows(w, array(ids), 25.3))
    yield Case("dequantize", block.name, _shape(w), lambda run, _: run.dequantize(w))


def _of_arrays(rng: np.random.Generator) -> Iterator[Case]:
    for n, d in [(1, 257), (3, 64), (5, 5120)]:
        yield _rms_norm(rng, n, d, add=False)
        yield _rms_norm(rng, n, d, add=True)


def _named(op: str, rows: int) -> str:
    """Backends have other kernels for a few rows, and for many."""
    return op if rows == 1 else f"{op}, 2+ rows" if rows <= FEW_ROWS else f"{op}, 9+ rows"


def _matmul(rng: np.random.Generator, w: QTensor, n: int) -> Case:
    x, bias, add = _normal(rng, n, w.shape[1]), _normal(rng, w.rows), _normal(rng, n, w.rows)
    op = _named("matmul", n)

    def compute(run: Operations, array: Convert) -> Any:
        return run.matmul(array(x), w, bias=array(bias), add=array(add))

    return Case(op, w.block.name, f"x ({n}, {w.shape[1]}), w {_shape(w)}", compute)


def _matmuls(rng: np.random.Generator, parts: list[tuple[type[Block], int]], normed: bool) -> Case:
    k = max(_LEAST_K if block.weights == 1 else block.weights for block, _ in parts)
    if any(k % block.weights for block, _ in parts):
        k = max(block.weights for block, _ in parts)
    ws = [random_tensor(rng, block, rows, k) for block, rows in parts]
    x, bias, weight = _normal(rng, 2, k), _normal(rng, ws[1].rows), _normal(rng, k)

    def compute(run: Operations, array: Convert) -> Any:
        norm = (array(weight), 1e-5) if normed else None
        products = run.matmuls(array(x), ws, [None, array(bias), None], norm=norm)
        return np.concatenate([np.array(ops.to_mlx(y)) for y in products], axis=-1)

    shapes = " ".join(f"{w.block.name} {_shape(w)}" for w in ws)
    shape = f"x (2, {k}){_NORMED * normed}, w {shapes}"
    return Case("matmuls", parts[0][0].name, shape, compute)


def _gate_up(
    rng: np.random.Generator, gate: QTensor, up: QTensor, n: int, act: str, normed: bool
) -> Case:
    x, weight = _normal(rng, n, gate.shape[1]), _normal(rng, gate.shape[1])

    def compute(run: Operations, array: Convert) -> Any:
        norm = (array(weight), 1e-5) if normed else None
        return run.gate_up(array(x), gate, up, act, norm=norm)

    op = _named("gate_up", n)
    shape = f"x ({n}, {gate.shape[1]}){_NORMED * normed}, w {_shape(gate)}, {act}"
    return Case(op, gate.block.name, shape, compute)


def _norm_matmul(rng: np.random.Generator, w: QTensor) -> Case:
    x, weight = _normal(rng, 3, w.shape[1]), _normal(rng, w.shape[1])

    def compute(run: Operations, array: Convert) -> Any:
        both = run.norm_matmul(array(x), w, (array(weight), 1e-5))
        return np.concatenate([np.array(ops.to_mlx(y)) for y in both], axis=-1)

    return Case("norm_matmul", w.block.name, f"x {x.shape}, w {_shape(w)}", compute)


def _rms_norm(rng: np.random.Generator, n: int, d: int, *, add: bool) -> Case:
    x, weight, residual = 5 * _normal(rng, n, d), _normal(rng, d), _normal(rng, n, d)

    def compute(run: Operations, array: Convert) -> Any:
        added = array(residual) if add else None
        return run.rms_norm(array(x), array(weight), 1e-6, add=added)

    return Case("rms_norm", ARRAYS, f"x ({n}, {d}){' and a residual' * add}", compute)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def _shape(w: QTensor) -> str:
    return f"({w.rows}, {w.shape[1]})"
