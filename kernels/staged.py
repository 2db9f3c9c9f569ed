"""staged: where kernels for a few rows of x get x from: each simdgroup for itself, or a threadgroup in its memory."""

from __future__ import annotations

from mlx_ferrum.tensor import Layout

LEAST = 2  # rows of x; each byte of w serves all of them, so that reads of x take longest
# Per threadgroup, by whether x is staged; as in matvec.metal and staged.metal.
SIMDGROUPS = {False: 2, True: 8}
# For kernels with an optional RMS norm of x, by whether it is there: x in the body.
_INPUT = {False: "x", True: "rms_norm_input(x, norm, eps[0])"}
_STAGED_INPUT = "stage_input({}, staged, factors, squares, simdgroup_index_in_threadgroup)"
_MEMORY = """
    threadgroup half4 staged[256 * BATCH];
    threadgroup float2 factors[64 * BATCH];
    threadgroup float squares[BATCH];
"""


def saves(rows: int, *ws: Layout) -> bool:
    """Whether staging saves time by the cost model: for several rows of x, and weights in blocks."""
    return rows >= LEAST and any(w.block.weights > 1 for w in ws)


def body(text: str, *, staged: bool, norm: bool = False, **parts: str) -> str:
    """A kernel's body: text with {input}, x or the norm of x, {simdgroup}, its number in the grid, and other parts."""
    simdgroup = (
        f"{SIMDGROUPS[staged]} * threadgroup_position_in_grid.x + simdgroup_index_in_threadgroup"
    )
    x = _STAGED_INPUT.format(_INPUT[norm]) if staged else _INPUT[norm]
    return (_MEMORY if staged else "") + text.format(input=x, simdgroup=simdgroup, **parts)


def prefix(*, staged: bool, norm: bool = False) -> str:
    """The start of a kernel's name."""
    return ("staged_" if staged else "") + ("norm_" if norm else "")
