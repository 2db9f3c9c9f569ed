"""weighted_sum: the weighted sum of the outputs of a token's experts, plus a residual."""

from __future__ import annotations

import functools

import mlx.core as mx

from mlx_ferrum.launch import Kernel

from .gather_down import check_sum, no_sum
from .header import header

THREADS = 64
BODY = """
    int d = x_shape[1], chunks = (d + 3) / 4, token = thread_position_in_grid.x / chunks;
    int i = 4 * (thread_position_in_grid.x % chunks);
    size_t row = size_t(token) * d;
    weighted_sum<ADD, SIGMOID>(x + row * USED, weights + token * USED, ADD ? add + row : add, y + row, USED, d, i);
"""


def weighted_sum(
    x: mx.array, weights: mx.array, *, add: mx.array | None = None, sigmoid: bool = False
) -> mx.array:
    """Computes Σ weights x + add in one launch, as float32.

    x: (tokens * n, d) of a float type; weights: (tokens, n), add: (tokens, d) -> (tokens, d)
    sigmoid: apply a sigmoid to the weights first
    """
    (tokens, used), d = weights.shape, x.shape[-1]
    if x.shape != (tokens * used, d):
        raise ValueError(f"weighted_sum: x of shape {x.shape} for weights of {weights.shape}")
    check_sum(weights, weights, add, d)
    if not used:
        return no_sum(add, tokens, d)
    (y,) = _kernel()(
        [x, weights, x if add is None else add],
        template={"USED": used, "ADD": add is not None, "SIGMOID": sigmoid},
        grid=(tokens * -(-d // 4), 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(tokens, d)],
        output_dtypes=[mx.float32],
    )
    return y


@functools.cache
def _kernel() -> Kernel:
    return Kernel(
        name="weighted_sum",
        source=BODY,
        inputs=("x", "weights", "add"),
        outputs=("y",),
        header=header("weighted_sum.metal"),
    )
