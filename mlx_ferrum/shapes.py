"""Checks of the shapes of products, before any backend sees them."""

from __future__ import annotations

from typing import Protocol

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
