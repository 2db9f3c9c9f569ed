"""The native operations against the reference backend, over block types and odd shapes, with each instruction set."""

from __future__ import annotations

from typing import get_args

import gguf
import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from cpu_cases import by_reference, normal, random_weight

from mlx_ferrum import blocks, ops
from mlx_ferrum.tensor import QTensor

BLOCKS = pytest.mark.parametrize(
    "block", [b for b in blocks.SUPPORTED if b is not blocks.Q8_K], ids=lambda b: b.name
)  # files do not hold Q8_K; test_ops.py has it
SIZES = (  # rows of the weight, of x
    *((1, 1), (3, 2), (5, 3), (33, 7), (65, 8), (200, 9), (1, 17), (3, 33), (5, 65)),
    *((65, 1), (200, 1), (33, 2), (200, 8), (33, 9), (65, 17), (200, 33), (33, 65)),
)


def widths(block: type[blocks.Block]) -> tuple[int, ...]:
    """Row lengths: part of 256 weights, just that, and more."""
    if block.weights == 256:
        return (256, 768)
    return (1, 7, 33, 256, 531) if block.weights == 1 else (32, 96, 256, 288, 576, 640)


def float64(w: QTensor) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return by_reference(ops.dequantize, w).astype(np.float64)


# -- weights -----------------------------------------------------------------------------------


@BLOCKS
def test_products(native: Backend, block: type[blocks.Block]) -> None:
    for k in widths(block):
        for rows, n in SIZES:
            w = random_weight(block, rows, k, seed=rows * n)
            x = normal(n, k)
            weights = float64(w)
            found = np.asarray(ops.matmul(x, w))
            wanted = x.astype(np.float64) @ weights.T
            allowed = native.product_error(x.astype(np.float64), weights)
            worst = (np.abs(found - wanted) / allowed).max()
            assert found.shape == (n, rows) and worst <= 1, (k, rows, n, worst)


@BLOCKS
def test_a_row_does_not_depend_on_the_others(native: Backend, block: type[blocks.Block]) -> None:
    """One row, two and more are summed in different orders; float32 sums differ in nothing else."""
    k = widths(block)[-1]
    w, x = random_weight(block, 71, k, seed=1), normal(65, k)
    whole = np.asarray(ops.matmul(x, w))
    scale = np.abs(x).sum(-1, keepdims=True) * np.abs(float64(w)).max(-1)
    for n in range(1, 34):
        assert (np.abs(ops.matmul(x[:n], w) - whole[:n]) <= 5e-7 * scale[:n]).all(), n


@BLOCKS
@pytest.mark.parametrize("n", [1, 3, 9])
def test_weights_of_mixed_types_at_once(native: Backend, block: type[blocks.Block], n: int) -> None:
    x = normal(2, n, 256)
    others = (blocks.Q4_K, blocks.Q6_K, blocks.F16)
    ws = [random_weight(b, 40 + i, 256, seed=i) for i, b in enumerate((block, *others))]
    for together, w in zip(ops.matmuls(x, ws), ws, strict=True):
        assert np.array_equal(together, ops.matmul(x, w)), w


@BLOCKS
@pytest.mark.parametrize("act", get_args(ops.Activation))
def test_gate_up(native: Backend, block: type[blocks.Block], act: ops.Activation) -> None:
    k = widths(block)[-1]
    gate = random_weight(block, 101, k, seed=2)
    up = random_weight(blocks.Q8_0 if k % 32 == 0 else blocks.F32, 101, k, seed=3)
    for n in (1, 5, 33):
        x = 3 * normal(n, k)
        g, u = (by_reference(ops.matmul, np.asarray(x), w) for w in (gate, up))
        wide = x.astype(np.float64)
        wanted = by_reference(ops.gate_up, x, gate, up, act)
        # both activations are at most 1.13 times as steep as their argument, and at most as large
        allowed = 1.13 * native.product_error(wide, float64(gate)) * np.abs(u)
        allowed += native.product_error(wide, float64(up)) * (np.abs(g) + 1e-3)
        assert (np.abs(ops.gate_up(x, gate, up, act) - wanted) <= allowed + 1e-6).all()


@BLOCKS
def test_rows_decode_exactly(native: Backend, block: type[blocks.Block]) -> None:
    """Every number is that of gguf-py; only the sign of a zero may differ."""
    for k in widths(block):
        w = random_weight(block, 37, k, seed=k)
        wanted = gguf.quants.dequantize(w.data, gguf.GGMLQuantizationType[block.name])
        assert np.array_equal(ops.dequantize(w), wanted)
        ids = np.array([[36, 0, 5], [5, 5, 1]])
        assert np.array_equal(np.asarray(ops.rows(w, mx.array(ids))), wanted[ids])


@pytest.mark.parametrize("ids", [[0, 40], [-1], [1 << 40]])
def test_rows_outside_the_matrix_are_refused(native: Backend, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="row ids lie between 0 and 39, found"):
        ops.rows(random_weight(blocks.Q8_0, 40, 64, seed=1), mx.array(ids))


@BLOCKS
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 9])
def test_nan_and_infinity_stay_visible(
    native: Backend, block: type[blocks.Block], poison: float, n: int
) -> None:
    """In the row that has them, and in no other."""
    k = widths(block)[-1]
    w, x = random_weight(block, 70, k, seed=4), normal(n, k)
    clean = np.asarray(ops.matmul(x, w))
    x[n // 2, k // 2] = poison
    found = np.asarray(ops.matmul(x, w))
    assert not np.isfinite(found[n // 2]).any()
    others = np.arange(n) != n // 2
    assert np.array_equal(found[others], clean[others])


@BLOCKS
def test_infinite_scales_stay_visible(native: Backend, block: type[blocks.Block]) -> None:
    """Blocks of random bits, whose scales are also infinite and NaN."""
    k = 2 * block.weights
    raw = np.random.default_rng(block.id).integers(0, 256, (4000, 2 * block.bytes), np.uint8)
    w = QTensor(block, (4000, k), raw.reshape(-1))
    finite = np.isfinite(float64(w)).all(axis=-1)
    small = finite & (np.abs(float64(w)).max(axis=-1) < 1e30)  # whose sums cannot overflow
    for n in (1, 2, 3, 9):
        found = np.asarray(ops.matmul(normal(n, k), w))
        assert not np.isfinite(found[:, ~finite]).any()
        assert np.isfinite(found[:, small]).all()  # though the next row is read as well
    decoded = by_reference(ops.dequantize, w)
    assert not np.isfinite(ops.dequantize(w)[~np.isfinite(decoded)]).any()


# -- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 7, 64, 576, 1000])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (130,)], ids=str)
def test_rms_norm(native: Backend, shape: tuple[int, ...], d: int) -> None:
    x, weight = 5 * normal(*shape, d), normal(d, seed=1)
    wanted = by_reference(ops.rms_norm, x, weight, 1e-6)
    assert np.allclose(ops.rms_norm(x, weight, 1e-6), wanted, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_norm_keeps_nan_and_infinity_visible(native: Backend, poison: float) -> None:
    x = normal(3, 64)
    x[1, 5] = poison
    found = np.asarray(ops.rms_norm(x, normal(64), 1e-6))
    assert np.isnan(found[1, 5]) and np.isfinite(found[[0, 2]]).all()
