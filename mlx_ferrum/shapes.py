"""Checks of the shapes of products, before any backend sees them."""

from __future__ import annotations

from typing import Protocol

from .batch import Place
from .tensor import QTensor


class Array(Protocol):
    """What the checks read of an array, whatever its kind."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


def check_product(x: Array, *ws: QTensor) -> None:
    """x: (..., k), each w: (rows, k). Raises ValueError for any other shapes."""
    for w in ws:
        if len(w.shape) != 2 or w.shape[1] != x.shape[-1]:
            raise ValueError(f"matmul: x of shape {x.shape} does not fit {w}")


def check_experts(x: Array, ids: Array, *ws: QTensor, spread: bool = False) -> None:
    """x: (..., k), ids: (..., n), each w: (e, rows, k). Raises ValueError for any other shapes.

    spread: x is (..., n, k), a row for each id
    """
    for w in ws:
        if len(w.shape) != 3 or w.shape[2] != x.shape[-1]:
            raise ValueError(f"gather: x of shape {x.shape} does not fit {w}")
    expected = ids.shape if spread else ids.shape[:-1]
    if not ids.shape or x.shape[:-1] != expected:
        raise ValueError(f"gather: x of shape {x.shape} does not fit ids of shape {ids.shape}")


def check_pair(gate: QTensor, up: QTensor) -> None:
    """Raises ValueError if gate and up have other numbers of rows or experts."""
    if gate.shape[:-1] != up.shape[:-1]:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")


def check_append(q: Array, k: Array, v: Array, frequencies: Array, at: Place) -> None:
    """q: (n, h, d), k: (n, g, d), v: (n, g, dv), of the batch's n rows. Raises ValueError for any other shapes."""
    n, kv = len(at.batch.positions), at.storage.kv
    if q.shape[0] != n or len(q.shape) != 3 or q.shape[2] != kv.key_dim or q.shape[1] % kv.heads:
        raise ValueError(f"append: q of shape {q.shape} does not fit {n} rows of {kv}")
    expected = (n, kv.heads, kv.key_dim), (n, kv.heads, kv.value_dim)
    if (k.shape, v.shape) != expected:
        raise ValueError(f"append: k {k.shape} and v {v.shape}, expected {expected}")
    if len(frequencies.shape) != 1:
        raise ValueError(f"append: frequencies of shape {frequencies.shape}, expected (m,)")
    if 2 * frequencies.shape[0] > kv.key_dim:
        raise ValueError(f"append: {frequencies.shape[0]} pairs do not fit heads of {kv.key_dim}")


def check_attend(q: Array, at: Place, sinks: Array | None) -> None:
    """q: (n, h, d), for the n rows of the batch; sinks: (h,). Raises ValueError for any other shapes."""
    n, kv = len(at.batch.positions), at.storage.kv
    if len(q.shape) != 3 or q.shape[0] != n or q.shape[2] != kv.key_dim or q.shape[1] % kv.heads:
        raise ValueError(f"attend: q of shape {q.shape} does not fit {n} rows of {kv}")
    if sinks is not None and sinks.shape != (q.shape[1],):
        raise ValueError(f"attend: sinks of shape {sinks.shape}, expected ({q.shape[1]},)")
