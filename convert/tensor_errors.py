"""How the tensors of two GGUF files differ, decoded in pieces, so that memory does not grow with the model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mlx_ferrum import gguf, packed, progress
from mlx_ferrum.blocks import by_name
from mlx_ferrum.kernels.cpu import native

from . import quantizing
from .comparison import TensorError, TensorErrors

PIECE = 1 << 16  # weights in float64 at a time, 512 KB: they stay in the cache
_Stored = tuple[gguf.GGUF, gguf.TensorInfo]


def measure(base: gguf.GGUF, other: gguf.GGUF, *, show: bool = True) -> TensorErrors:
    """Every tensor of `other` beside that of the same name in `base`; experts as stacks.

    show: whether a bar shows how far the work is
    Raises ValueError if a file changed since it was opened.
    """
    ours, theirs = packed.tensors(base), packed.tensors(other)
    shared = [n for n in ours if n in theirs]
    reshaped = {
        n: (ours[n].shape, theirs[n].shape) for n in shared if ours[n].shape != theirs[n].shape
    }
    names = [n for n in shared if n not in reshaped]
    errors = []
    total = sum(theirs[n].nbytes for n in names)
    with progress.bar(
        show=show, total=total, desc=other.path.name, unit="B", unit_scale=True
    ) as bar:
        for name in names:
            errors.append(_error((base, ours[name]), (other, theirs[name])))
            bar.update(theirs[name].nbytes)
    for file in (base, other):
        file.check()
    return TensorErrors(
        errors,
        only_base=[n for n in ours if n not in theirs],
        only_other=[n for n in theirs if n not in ours],
        reshaped=reshaped,
    )


def _error(base: _Stored, other: _Stored) -> TensorError:
    a, b = base[1], other[1]
    facts = (a.name, a.shape, a.type, b.type, a.nbytes, b.nbytes)
    if not (_is_decoded(a) and _is_decoded(b)):
        return TensorError(*facts)
    found = np.array(list(_sums(base, other)))  # (pieces, 5)
    squares, base_squares, other_squares, product = found[:, :4].sum(axis=0).tolist()
    return TensorError(
        *facts, squares, base_squares, other_squares, product, float(found[:, 4].max())
    )


def _is_decoded(info: gguf.TensorInfo) -> bool:
    try:
        by_name(info.type)
    except NotImplementedError:
        return False
    return True


def _sums(base: _Stored, other: _Stored) -> Iterator[tuple[Any, ...]]:
    """Of each piece: sums of (b - a)², a², b² and a b, and the largest |b - a|; the pieces on all cores."""
    both = (quantizing.decoded(model, info) for model, info in (base, other))
    with ThreadPoolExecutor(native.cores()) as pool:
        for (a, _), (b, _) in zip(*both, strict=True):
            x, y = a.reshape(-1), b.reshape(-1)
            parts = [slice(i, i + PIECE) for i in range(0, x.size, PIECE)]
            yield from pool.map(_piece, (x[p] for p in parts), (y[p] for p in parts))


def _piece(a: np.ndarray, b: np.ndarray) -> tuple[Any, ...]:
    """a, b: (n,) float32"""
    x, y = a.astype(np.float64), b.astype(np.float64)
    difference = y - x
    squares, product = difference @ difference, x @ y
    return squares, x @ x, y @ y, product, np.abs(difference, out=difference).max()
