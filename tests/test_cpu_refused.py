"""What the library would read and write elsewhere is refused before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import Backend
from cpu_cases import random_weight

from mlx_ferrum import blocks, ops


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "bias": (
        lambda: ops.matmul(zeros(2, 64), random_weight(blocks.Q8_0, 5, 64, 1), bias=zeros(4)),
        r"bias: expected shape \(5,\), found \(4,\)",
    ),
    "residual": (
        lambda: ops.matmul(zeros(2, 64), random_weight(blocks.Q8_0, 5, 64, 1), add=zeros(5)),
        r"add: expected shape \(2, 5\), found \(5,\)",
    ),
    "gate and up": (
        lambda: ops.gate_up(
            zeros(64),
            random_weight(blocks.Q8_0, 5, 64, 1),
            random_weight(blocks.Q8_0, 6, 64, 1),
            "silu",
        ),
        "differ in rows",
    ),
    "norm": (lambda: ops.rms_norm(zeros(2, 8), zeros(7), 1e-6), r"expected shape \(8,\)"),
    "pairs": (
        lambda: ops.rotate(
            zeros(1, 1, 1, 8),
            zeros(1, 1, 1, 8),
            zeros(1, 1, 1, 8),
            zeros(5),
            offset=0,
            interleaved=True,
        ),
        "5 pairs do not fit heads of 8",
    ),
    "queries and keys": (
        lambda: ops.rotate(
            zeros(1, 1, 2, 8),
            zeros(1, 1, 1, 6),
            zeros(1, 1, 1, 8),
            zeros(3),
            offset=0,
            interleaved=True,
        ),
        "do not fit together",
    ),
    "values": (
        lambda: ops.rotate(
            zeros(1, 1, 2, 8),
            zeros(1, 1, 1, 8),
            zeros(1, 2, 1, 8),
            zeros(3),
            offset=0,
            interleaved=True,
        ),
        "do not fit together",
    ),
    "keys and values": (
        lambda: ops.attend(zeros(1, 2, 1, 8), zeros(1, 1, 5, 8), zeros(1, 1, 6, 8), scale=1),
        "do not fit together",
    ),
    "heads": (
        lambda: ops.attend(zeros(1, 3, 1, 8), zeros(1, 2, 5, 8), zeros(1, 2, 5, 8), scale=1),
        "do not fit together",
    ),
    "half precision keys": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8), zeros(1, 2, 5, 8).astype("f2"), zeros(1, 2, 5, 8), scale=1
        ),
        "k is float16, v is float32, expected the same",
    ),
    "double precision keys": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8),
            zeros(1, 2, 5, 8).astype("f8"),
            zeros(1, 2, 5, 8).astype("f8"),
            scale=1,
        ),
        "k: expected float16 or float32, found float64",
    ),
    "keys that are not contiguous": (
        lambda: ops.attend(
            zeros(1, 2, 1, 8), zeros(1, 2, 8, 5).swapaxes(2, 3), zeros(1, 2, 5, 8), scale=1
        ),
        "k: expected a contiguous last axis",
    ),
    "past the end of a cache": (
        lambda: ops.put(zeros(2, 1, 2, 9, 8), 8, zeros(2, 1, 2, 2, 8)),
        r"\(2, 1, 2, 2, 8\) at 8 does not fit \(2, 1, 2, 9, 8\)",
    ),
    "into a cache of another type": (
        lambda: ops.put(zeros(2, 1, 2, 9, 8).astype("f2"), 0, zeros(2, 1, 2, 2, 8)),
        "stored is float16, new is float32, expected the same",
    ),
    "new keys that are not contiguous": (
        lambda: ops.put(zeros(2, 1, 2, 9, 8), 0, zeros(2, 1, 2, 8, 3).swapaxes(3, 4)),
        "put: expected a contiguous last axis",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(native: Backend, name: str) -> None:
    """The library checks nothing: it would read and write elsewhere."""
    call, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        call()
