"""What recurrent layers do, over states in slots, and the gates of hybrid models."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...batch import RecurrentPlace
from ...kernels.cpu import native
from ...options import Delta
from .arguments import constant, floats, shaped
from .memory import empty, trace


def short_conv(x: np.ndarray, weight: mx.array, at: RecurrentPlace) -> np.ndarray:
    x, (channels, kernel) = floats(x), weight.shape
    out = empty(*x.shape)
    native.run(
        "ShortConv",
        x=x,
        weight=constant("short_conv: weight", weight, channels, kernel),
        columns=at.storage.columns,
        out=out,
        channels=channels,
        kernel=kernel,
        **_places(at),
    )
    return out


def gated_delta(
    qkv: np.ndarray, a: np.ndarray, b: np.ndarray, at: RecurrentPlace, delta: Delta
) -> np.ndarray:
    qkv, a, b = map(floats, (qkv, a, b))
    (rows, heads), size = a.shape, at.storage.kind.size
    out = empty(rows, heads, size)
    native.run(
        "GatedDelta",
        qkv=qkv,
        a=a,
        b=b,
        decay=constant("gated_delta: decay", delta.decay, heads),
        dt=constant("gated_delta: dt", delta.dt, heads),
        matrices=at.storage.matrices,
        out=out,
        heads=heads,
        key_heads=delta.key_heads,
        size=size,
        is_tiled=delta.is_tiled,
        eps=delta.eps,
        **_places(at),
    )
    return out


def _places(at: RecurrentPlace) -> dict[str, Any]:
    """The rows of each sequence, and its slots."""
    return {
        "starts": trace(at.batch.starts),
        "sources": trace(at.slots.sources),
        "targets": trace(at.slots.targets),
        "sequences": len(at.slots.sources),
        "slots": at.storage.blocks,
    }


def gated_norm(x: np.ndarray, weight: mx.array, eps: float, gate: np.ndarray) -> np.ndarray:
    x, d = floats(x), x.shape[-1]
    gate = floats(gate)
    out = empty(*gate.shape)
    scale = constant("gated_norm: weight", weight, d)
    rows = x.size // d
    native.run("GatedNorm", x=x, weight=scale, gate=gate, out=out, rows=rows, d=d, eps=eps)
    return out


def gate(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    x, d = floats(x), x.shape[-1]
    pairs = shaped("gate: pairs", pairs, *x.shape[:-1], 2 * d)
    out = empty(*x.shape)
    native.run("Gate", x=x, pairs=pairs, out=out, rows=x.size // d, d=d)
    return out
