"""gate: the output gate of attention, which lies beside each head's query."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import KEPT, Call, Kernel

from .append import Shape
from .header import header

THREADS = 64
BODY = """
    int d = x_shape[2], chunks = (d + 3) / 4, i = 4 * (thread_position_in_grid.x % chunks);
    size_t head = thread_position_in_grid.x / chunks;
    gate(x + head * d, pairs + (2 * head + 1) * d, y + head * d, d, i);
"""


def gate(x: mx.array, pairs: mx.array) -> mx.array:
    """Computes x * sigmoid(the second half of each head of pairs) in one launch, as float32.

    x: (n, h, d), pairs: (n, h, 2 d), of float types -> (n, h, d)
    Raises ValueError for shapes that do not fit together.
    """
    (y,) = _call(x.shape, pairs.shape)([x, pairs])
    return y


@functools.lru_cache(KEPT)
def _call(x: Shape, pairs: Shape) -> Call:
    n, heads, d = x
    if pairs != (n, heads, 2 * d):
        raise ValueError(f"gate: x {x} does not fit queries and gates of {pairs}")
    return _kernel().prepare(
        grid=(n * heads * -(-d // 4), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[x],
        output_dtypes=[mx.float32],
    )


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="gate",
        source=BODY,
        inputs=("x", "pairs"),
        outputs=("y",),
        header=header("gate.metal"),
    )
