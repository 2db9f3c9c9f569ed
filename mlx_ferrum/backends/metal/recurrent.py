"""Recurrent layers on a GPU: states in slots, which launches write and read where they lie."""

from __future__ import annotations

import mlx.core as mx

from ...batch import RecurrentPlace
from ...kernels import gate as gate_kernel
from ...kernels import gated_delta as gated_delta_kernel
from ...kernels import gated_norm as gated_norm_kernel
from ...kernels import short_conv as short_conv_kernel
from ...kernels.short_conv import Turns
from ...options import Delta

gate = gate_kernel.gate
gated_norm = gated_norm_kernel.gated_norm


def short_conv(x: mx.array, weight: mx.array, at: RecurrentPlace) -> mx.array:
    held = at.storage
    out, held.mark = short_conv_kernel.short_conv(
        x, weight, held.columns, _turns(at), mark=held.mark
    )
    return out


def gated_delta(
    qkv: mx.array, a: mx.array, b: mx.array, at: RecurrentPlace, delta: Delta
) -> mx.array:
    held = at.storage
    out, held.mark = gated_delta_kernel.gated_delta(
        qkv, a, b, held.matrices, _turns(at), delta=delta, mark=held.mark
    )
    return out


def _turns(at: RecurrentPlace) -> Turns:
    """Made once for all layers."""
    batch, slots = at.batch, at.slots
    key = "turns", id(slots)
    found: Turns | None = batch.shared.get(key)
    if found is None:
        rows = int((batch.starts[1:] - batch.starts[:-1]).max())
        found = batch.shared[key] = Turns(
            batch.mlx_starts, slots.mlx_sources, slots.mlx_targets, rows
        )
    return found
