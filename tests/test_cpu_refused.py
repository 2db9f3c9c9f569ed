"""What the library would read and write elsewhere is refused before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import Backend
from cpu_cases import random_weight

from mlx_ferrum import blocks, ops
from mlx_ferrum.batch import Place
from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.model import ModelStates


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def place(n: int) -> Place:
    """n rows of one sequence in a layer of two heads of 8 and 6."""
    states = ModelStates([KV(2, 8, 6)], ops.allocate)
    return states.batch([(states.begin(), n)], np.arange(n)).layer(0)


def rows(n: int, frequencies: Any = None, norms: Any = None) -> Any:
    """Append n rows."""
    shaped = zeros(n, 4, 8), zeros(n, 2, 8), zeros(n, 2, 6)
    turns = zeros(4) if frequencies is None else frequencies
    return ops.append(*shaped, place(n), turns, interleaved=True, norms=norms)


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
    "frequencies": (
        lambda: rows(2, frequencies=zeros(2, 100)),
        r"append: frequencies of shape \(2, 100\), expected \(m,\)",
    ),
    "norm of queries": (
        lambda: rows(2, norms=(zeros(7), zeros(8), 1e-6)),
        r"append: norm of q: expected shape \(8,\), found \(7,\)",
    ),
    "norm of keys": (
        lambda: rows(2, norms=(zeros(8), zeros(1), 1e-6)),
        r"append: norm of k: expected shape \(8,\), found \(1,\)",
    ),
    "sinks": (
        lambda: ops.attend(zeros(2, 4, 8), place(2), scale=1, sinks=zeros(2)),
        r"attend: sinks of shape \(2,\), expected \(4,\)",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused(native: Backend, name: str) -> None:
    """The library checks nothing: it would read and write elsewhere."""
    call, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        call()
