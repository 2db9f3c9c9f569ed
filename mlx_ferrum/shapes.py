"""Checks of the shapes of products, before any backend sees them."""

from __future__ import annotations

from typing import Protocol

from .batch import Place, RecurrentPlace
from .options import Delta
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


def check_mask(logits: Array, bits: Array) -> None:
    """logits: (n, v), bits: (n, ceil(v / 32)). Raises ValueError for any other shapes."""
    if len(logits.shape) != 2 or bits.shape != (logits.shape[0], -(-logits.shape[1] // 32)):
        raise ValueError(
            f"mask_logits: logits of shape {logits.shape} do not fit bits of {bits.shape}"
        )


def check_pair(gate: QTensor, up: QTensor) -> None:
    """Raises ValueError if gate and up have other numbers of rows or experts."""
    if gate.shape[:-1] != up.shape[:-1]:
        raise ValueError(f"gate_up: {gate} and {up} differ in rows")


def check_append(q: Array, k: Array, v: Array, frequencies: Array, at: Place) -> None:
    """q: (n, h, d or 2 d), k: (n, g, d), v: (n, g, dv), of the batch's n rows.

    Raises ValueError for any other shapes.
    """
    n, kv = len(at.batch.positions), at.storage.kv
    widths = kv.key_dim, 2 * kv.key_dim
    if len(q.shape) != 3 or q.shape[0] != n or q.shape[2] not in widths or q.shape[1] % kv.heads:
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


def check_short_conv(x: Array, weight: Array, at: RecurrentPlace) -> None:
    """x: (n, c), of the n rows of the batch, weight: (c, columns + 1). Raises ValueError for any other shapes."""
    n, kind = len(at.batch.positions), at.storage.kind
    expected = (n, kind.channels), (kind.channels, kind.columns + 1)
    if (x.shape, weight.shape) != expected:
        raise ValueError(f"short_conv: x {x.shape} and weight {weight.shape}, expected {expected}")


def check_delta(qkv: Array, a: Array, b: Array, at: RecurrentPlace, delta: Delta) -> None:
    """qkv: (n, c), a and b: (n, h), decay and dt: (h,). Raises ValueError for any other shapes."""
    n, kind, keys = len(at.batch.positions), at.storage.kind, delta.key_heads
    if keys < 1 or kind.heads % keys:
        raise ValueError(f"gated_delta: {keys} key heads, expected a divisor of {kind.heads}")
    wide = (2 * keys + kind.heads) * kind.size
    expected = (n, wide), (n, kind.heads), (n, kind.heads), (kind.heads,), (kind.heads,)
    found = qkv.shape, a.shape, b.shape, delta.decay.shape, delta.dt.shape
    if found != expected:
        raise ValueError(
            f"gated_delta: qkv, a, b, decay and dt of shapes {found}, expected {expected}"
        )


def check_gated_norm(x: Array, weight: Array, gate: Array) -> None:
    """x: (n, h, d), weight: (d,), gate: (n, h d). Raises ValueError for any other shapes."""
    fits = len(x.shape) == 3 and weight.shape == x.shape[2:]
    if not fits or gate.shape != (x.shape[0], x.shape[1] * x.shape[2]):
        raise ValueError(
            f"gated_norm: x {x.shape}, weight {weight.shape} and gate {gate.shape}, expected "
            "(n, h, d), (d,) and (n, h d)"
        )


def check_gate(x: Array, pairs: Array) -> None:
    """x: (n, h, d), pairs: (n, h, 2 d). Raises ValueError for any other shapes."""
    if len(x.shape) != 3 or pairs.shape != (*x.shape[:2], 2 * x.shape[2]):
        raise ValueError(f"gate: x {x.shape} and pairs {pairs.shape}, expected twice as wide heads")
