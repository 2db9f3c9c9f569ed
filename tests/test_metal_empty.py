"""Empty inputs: no rows, no tokens, no pairs. Nothing is launched, and the result has its shape and type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL
from test_ops import random_tensor

from mlx_ferrum import blocks, launch, ops
from mlx_ferrum.kernels.gate_up import gate_up
from mlx_ferrum.kernels.gather_down import gather_down
from mlx_ferrum.kernels.gather_gate_up import gather_gate_up
from mlx_ferrum.kernels.gather_matmul import gather_matmul
from mlx_ferrum.kernels.gather_matvec import gather_matvec
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.matvecs import matvecs
from mlx_ferrum.kernels.norm_matvec import norm_matvec
from mlx_ferrum.kernels.rms_norm import rms_norm
from mlx_ferrum.kernels.route import route
from mlx_ferrum.kernels.rows import rows
from mlx_ferrum.kernels.sort_pairs import sort_pairs
from mlx_ferrum.kernels.weighted_sum import weighted_sum
from mlx_ferrum.launch import Kernel, Launch
from mlx_ferrum.ops import Routing

K, ROWS, EXPERTS, USED = 64, 5, 4, 2
NORM = mx.ones(K), 1e-5


def ids(*shape: int) -> mx.array:
    return mx.zeros(shape, mx.int32)


@pytest.fixture
def w():
    return random_tensor(blocks.Q8_0, ROWS, K, seed=1)


@pytest.fixture
def stack():
    return random_tensor(blocks.Q8_0, EXPERTS, ROWS, K, seed=1)


@pytest.fixture
def nothing_runs():
    def refuse(kernel: Kernel, _: Launch) -> list[mx.array]:
        raise AssertionError(f"{kernel.name} was launched")

    with launch.use_runner(refuse):
        yield


def assert_empty(found: Any, *shapes: Sequence[int], dtype: mx.Dtype = mx.float32) -> None:
    found = [found] if isinstance(found, mx.array) else list(found)
    assert [y.shape for y in found] == list(shapes)
    assert {y.dtype for y in found} == {dtype}
    assert all(np.array(y).size == 0 for y in found)


def test_no_rows(nothing_runs, w):
    x, wide = mx.zeros((0, K)), mx.zeros((0, ROWS))
    bias = mx.ones(ROWS)
    assert_empty(matvec(x, w, bias=bias, add=wide), (0, ROWS))
    assert_empty(matvecs(x, [w, w], [None, bias], norm=NORM), (0, ROWS), (0, ROWS))
    assert_empty(norm_matvec(x, w, NORM), (0, K), (0, ROWS))
    assert_empty(gate_up(x, w, w, "silu", norm=NORM), (0, ROWS))
    assert_empty(matmul(x, w, bias=bias, add=wide, gate=(wide, "gelu")), (0, ROWS))
    assert_empty(rows(w, ids(0)), (0, K))
    halves = x.astype(mx.float16)
    assert_empty(rms_norm(halves, *NORM, halves), (0, K), dtype=mx.float16)


def test_no_tokens(nothing_runs, stack):
    x, none = mx.zeros((0, K)), ids(0, USED)
    weights, wide, bias = mx.zeros((0, USED)), mx.zeros((0, ROWS)), mx.ones((EXPERTS, ROWS))
    chosen, shares = route(mx.zeros((0, EXPERTS)), Routing(USED))
    assert_empty(chosen, (0, USED), dtype=mx.int32)
    assert_empty(shares, (0, USED))
    assert_empty(gather_matvec(x, stack, none, bias=bias), (0, ROWS))
    assert_empty(gather_gate_up(x, stack, stack, none, "silu"), (0, ROWS))
    assert_empty(gather_down(x, stack, none, weights, add=wide), (0, ROWS))
    assert_empty(weighted_sum(wide, weights, add=wide), (0, ROWS))
    order = sort_pairs(none.reshape(0), EXPERTS, size=16)
    assert_empty(order.pairs, (0,), dtype=mx.int32)
    assert order.tiles.shape == (EXPERTS + 1, 3) and not np.array(order.tiles).any()
    assert_empty(gather_matmul(x, stack, order, bias=bias), (0, ROWS))


def test_no_pairs(nothing_runs, stack):
    """Tokens that choose no expert keep what the sum is added to."""
    x, none, add = mx.ones((3, K)), ids(3, 0), mx.arange(15).reshape(3, ROWS).astype(mx.float16)
    assert_empty(gather_matvec(x, stack, none), (0, ROWS))
    assert_empty(gather_gate_up(x, stack, stack, none, "silu"), (0, ROWS))
    order = sort_pairs(none.reshape(0), EXPERTS, size=16)
    assert_empty(gather_matmul(x, stack, order), (0, ROWS))
    for residual, wanted in ((None, np.zeros((3, ROWS))), (add, np.array(add))):
        for found in (
            gather_down(mx.zeros((0, K)), stack, none, mx.zeros((3, 0)), add=residual),
            weighted_sum(mx.zeros((0, ROWS)), mx.zeros((3, 0)), add=residual),
        ):
            assert found.dtype == mx.float32
            assert np.array_equal(np.array(found), wanted)


@pytest.mark.parametrize("lead", [(0,), (2, 0)], ids=str)
def test_operations(lead, w, stack):
    x, wide = mx.zeros((*lead, K)), mx.zeros((*lead, ROWS))
    none, weights = ids(*lead, USED), mx.zeros((*lead, USED))
    with METAL.in_use():
        assert_empty(ops.matmul(x, w, add=wide), wide.shape)
        assert_empty(ops.matmuls(x, [w, w], norm=NORM), wide.shape, wide.shape)
        assert_empty(ops.gate_up(x, w, w, "silu", norm=NORM), wide.shape)
        assert_empty(ops.norm_matmul(x, w, NORM), x.shape, wide.shape)
        assert_empty(ops.rows(w, ids(*lead)), x.shape)
        assert_empty(ops.rms_norm(x, *NORM, add=x), x.shape)
        chosen, shares = ops.route(mx.zeros((*lead, EXPERTS)), Routing(USED))
        assert chosen.shape == shares.shape == none.shape
        assert_empty(ops.gather_matmul(x, stack, none), (*lead, USED, ROWS))
        assert_empty(ops.gather_gate_up(x, stack, stack, none, "silu"), (*lead, USED, ROWS))
        parts = mx.zeros((*lead, USED, K))
        assert_empty(ops.gather_down(parts, stack, none, weights, add=wide), wide.shape)
        assert_empty(ops.sigmoid_gate(x, mx.zeros((*lead, 1)), add=x), x.shape)
