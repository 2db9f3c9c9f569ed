"""Each Metal kernel and block type against float64, on the GPU or on the host that executes Metal text."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from msl import metal_on_cpu
from test_ops import float64, random_tensor

from mlx_ferrum import blocks
from mlx_ferrum.kernels.gate_up import gate_up
from mlx_ferrum.kernels.matmul import matmul
from mlx_ferrum.kernels.matvec import matvec
from mlx_ferrum.kernels.matvecs import matvecs
from mlx_ferrum.kernels.norm_matvec import norm_matvec
from mlx_ferrum.kernels.rows import rows
from mlx_ferrum.tensor import QTensor

BLOCKS = pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
# Of |x| |w|, which is what a product can be. A float32 sum of thousands of terms, whose codes have an offset to take
# away again, stays below the first; halves round x and w by 2^-11 each.
FLOATS, HALVES = 1e-5, 2e-3
# Staged activations are halves in the range of a run of 16, weights stay exact.
STAGED = 2.0**-11 + FLOATS
# Of a result, which is rounded to its type.
ROUNDING = {mx.float32: 0, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


@pytest.fixture(autouse=True)
def host():
    with metal_on_cpu() as host:
        yield host


def activations(rows: int, k: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(k).normal(size=(rows, k)), mx.float32).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def size(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """|x| |w| of each row of x (n, k) with each of w (rows, k)."""
    return np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(w, axis=-1)


def few_rows(block: type[blocks.Block], batch: int) -> float:
    """The error allowed of kernels for up to 8 rows of x: staged for more than one, and weights in blocks."""
    return STAGED if batch > 1 and block.weights > 1 else FLOATS


def assert_product(
    found: mx.array, x: mx.array, w: QTensor, bound: float, added: np.ndarray | float = 0
) -> None:
    """found is x wᵀ + added."""
    wanted = wide(x) @ float64(w).T + added
    allowed = bound * size(wide(x), float64(w))
    assert found.shape == wanted.shape
    assert found.dtype == mx.float32
    worst = (np.abs(wide(found) - wanted) / allowed).max()
    assert worst <= 1, f"{worst:.2f} times the error allowed"


@BLOCKS
@pytest.mark.parametrize("batch", [1, 8])
def test_matvec(block, batch):
    for n_rows, n in [(9, 1), (1, 9), (70, 37)]:
        w = random_tensor(block, n_rows, n * block.weights, seed=n)
        if w.array.size >= 8:
            x = activations(batch, n * block.weights)
            assert_product(matvec(x, w), x, w, few_rows(block, batch))


@pytest.mark.parametrize("block", [blocks.Q4_K, blocks.Q6_K, blocks.F16], ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_matvec_of_shorter_types(block, dtype):
    w = random_tensor(block, 7, 512, seed=1)
    x = activations(2, 512, dtype)
    assert_product(matvec(x, w), x, w, few_rows(block, 2))


@BLOCKS
def test_matvec_of_a_slice(block):
    """Weights, x and bias lie anywhere that their own elements may."""
    k = 8 * max(block.weights, 4)
    w, x = random_tensor(block, 6, k, seed=2), activations(2, k)
    words = w.array.reshape(-1)
    for skip in (1, 2, 3):
        w.array = mx.concatenate([mx.zeros(skip, words.dtype), words])[skip:].reshape(6, -1)
        shifted = mx.concatenate([mx.zeros(skip), x.reshape(-1)])[skip:].reshape(2, k)
        assert_product(matvec(shifted, w), x, w, few_rows(block, 2))


@pytest.mark.parametrize("rows_a_simdgroup", [1, 2, 4])
def test_bias_and_residual(rows_a_simdgroup):
    w, x = random_tensor(blocks.Q5_K, 11, 256, seed=3), activations(3, 256)
    bias, add = activations(1, 11)[0], activations(3, 11)
    found = matvec(x, w, bias=bias, add=add, rows=rows_a_simdgroup)
    assert_product(found, x, w, STAGED, wide(bias) + wide(add))
    assert_product(matvec(x, w, bias=bias, rows=rows_a_simdgroup), x, w, STAGED, wide(bias))


def test_several_weights_of_mixed_types():
    ws = [
        random_tensor(block, n_rows, 256, seed=n_rows)
        for block, n_rows in (
            (blocks.Q4_K, 33),
            (blocks.Q6_K, 7),
            (blocks.F16, 9),
            (blocks.Q4_K, 1),
        )
    ]
    bias = activations(1, 7)[0]
    for batch, count in [(1, 3), (3, 2), (8, 3), (1, 4), (2, 4)]:
        x, biases = activations(batch, 256), [None, bias, None, None][:count]
        found = matvecs(x, ws[:count], biases, rows=2)
        for y, w, b in zip(found, ws, biases, strict=False):
            assert_product(y, x, w, few_rows(w.block, batch), 0 if b is None else wide(b))


def test_rounding_does_not_grow_with_the_bias_of_codes():
    """All activations are rounded down, and codes of Q8_0 are q + 128."""
    w, x = random_tensor(blocks.Q8_0, 9, 32, seed=1), mx.full((2, 32), 1 + 0.98 * 2.0**-11)
    assert_product(matvec(x, w), x, w, STAGED)


def normal_to(x: mx.array, weight: mx.array, eps: float) -> np.ndarray:
    """The RMS norm of x: (n, k)."""
    squares = (wide(x) ** 2).mean(-1, keepdims=True)
    return wide(x) / np.sqrt(squares + eps) * wide(weight)


def assert_normed(
    found: mx.array, x: mx.array, w: QTensor, norm: tuple[mx.array, float], bound: float = FLOATS
) -> None:
    """found is the product of the norm of x with w."""
    wanted = normal_to(x, *norm) @ float64(w).T
    allowed = bound * size(normal_to(x, *norm), float64(w))
    assert found.shape == wanted.shape
    assert (np.abs(wide(found) - wanted) <= allowed).all()


@BLOCKS
@pytest.mark.parametrize("batch", [1, 3])
def test_products_of_a_norm(block, batch):
    """Also where epsilon is most of the mean square, and where x is far from 1."""
    k = 3 * max(block.weights, 32)
    w, other = random_tensor(block, 33, k, seed=1), random_tensor(blocks.Q4_0, 6, k, seed=2)
    for factor in (1e-4, 1, 3e4):
        x, norm = activations(batch, k) * factor, (activations(1, k)[0] + 1, 1e-5)
        for y, weight in zip(
            matvecs(x, [w, other], [None, None], norm=norm), (w, other), strict=True
        ):
            assert_normed(y, x, weight, norm, few_rows(weight.block, batch))
        normed, y = norm_matvec(x, w, norm)
        np.testing.assert_allclose(wide(normed), normal_to(x, *norm), rtol=1e-5)
        assert_normed(y, x, w, norm)


@pytest.mark.parametrize("n_rows, k", [(1, 64), (5, 32), (3, 1024)])
@pytest.mark.parametrize("rows_a_simdgroup", [1, 2])
def test_the_norm_beside_a_product_is_whole(n_rows, k, rows_a_simdgroup):
    w, x, norm = (
        random_tensor(blocks.F32, n_rows, k, seed=1),
        activations(8, k),
        (activations(1, k)[0], 1e-6),
    )
    normed, y = norm_matvec(x, w, norm, rows=rows_a_simdgroup)
    np.testing.assert_allclose(wide(normed), normal_to(x, *norm), rtol=1e-5)
    assert_normed(y, x, w, norm)


def test_a_product_of_halves_is_added_to_floats():
    """Attention's result, and what it is added to."""
    w, x, add = (
        random_tensor(blocks.Q4_K, 9, 256, seed=1),
        activations(1, 256, mx.float16),
        activations(1, 9),
    )
    assert_product(matvec(x, w, add=1e4 * add), x, w, FLOATS, wide(1e4 * add))


def activated(g: np.ndarray, act: str) -> np.ndarray:
    if act == "silu":
        return g * (1 + np.tanh(g / 2)) / 2
    return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))


@BLOCKS
@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
def test_gate_up(block, mixed):
    k, act = 3 * max(block.weights, 32), "gelu" if mixed else "silu"
    gate, up = (
        random_tensor(b, 9, k, seed=seed)
        for seed, b in enumerate((block, blocks.Q4_0 if mixed else block))
    )
    x = activations(2 if mixed else 1, k) * 4
    g, u = (wide(x) @ float64(w).T for w in (gate, up))
    # activations are at most 1.13 times as steep as their argument
    error = 1.13 * size(wide(x), float64(gate)) * np.abs(u)
    error += size(wide(x), float64(up)) * np.abs(activated(g, act))
    bound = STAGED if mixed else FLOATS
    found = wide(gate_up(x, gate, up, act))
    assert (np.abs(found - activated(g, act) * u) <= bound * error).all()
    norm = activations(1, k)[0], 1e-5
    found = wide(gate_up(x, gate, up, act, norm=norm))
    normed = normal_to(x, *norm)
    g, u = (normed @ float64(w).T for w in (gate, up))
    error = 1.13 * size(normed, float64(gate)) * np.abs(u)
    error += size(normed, float64(up)) * np.abs(activated(g, act))
    assert (np.abs(found - activated(g, act) * u) <= bound * error).all()


def test_activations_near_and_far_from_zero():
    eye = QTensor(blocks.F32, (8, 8), np.eye(8, dtype=np.float32).view(np.uint8).reshape(-1))
    x = np.array([[-3e4, -200, -3, -0.7, 1e-3, 2, 20, 3e4]], np.float32)
    for act in ("silu", "gelu"):
        wanted = activated(x.astype(np.float64), act) * x
        np.testing.assert_allclose(
            np.array(gate_up(mx.array(x), eye, eye, act)), wanted, rtol=1e-5, atol=1e-7
        )


@BLOCKS
def test_rows_have_the_bits_of_the_definition(block):
    w = random_tensor(block, 13, 3 * max(block.weights, 4), seed=4)
    for ids in ([12, 0, 5], [3] * 9):
        assert np.array_equal(np.array(rows(w, mx.array(ids))), float64(w)[ids])
    tripled = float64(w)[[7]].astype(np.float32) * np.float32(3)
    assert np.array_equal(np.array(rows(w, mx.array([7]), 3.0)), tripled)


@pytest.mark.parametrize("block", [blocks.Q8_0, blocks.BF16, blocks.MXFP4], ids=lambda b: b.name)
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_rows_that_are_not_there(block, checked):
    """Neither 0x00 nor 0xff beside the weights decodes to NaN in every one of these types."""
    w = random_tensor(block, 5, 32, seed=5)
    with metal_on_cpu(checked=checked) as host:
        found = np.array(rows(w, mx.array([4, -1, 5, 1 << 30])))
    assert host.findings == []
    assert np.isnan(found[1:]).all()
    assert np.array_equal(found[0], float64(w)[4])


def test_the_smallest_exponents_of_mxfp4():
    """Scales of the first two are subnormal, which a GPU may take for 0, as the host does; never for another number."""
    w = random_tensor(blocks.MXFP4, 7, 64, seed=6)
    w.data.reshape(-1, blocks.MXFP4.bytes)[:, 0] = np.arange(14) // 2
    found, wanted = np.array(rows(w, mx.arange(7))), float64(w)
    assert np.array_equal(found[2:], wanted[2:])
    assert ((found[:2] == 0) | (found[:2] == wanted[:2])).all()


@BLOCKS
@pytest.mark.parametrize("columns", [16, 32, 64])
def test_matmul(block, columns):
    for n_rows, n, batch in [(64, 1, columns), (33, 3, columns + 1), (131, 2, 9)]:
        w = random_tensor(block, n_rows, n * block.weights, seed=n)
        x = activations(batch, n * block.weights)
        assert_product(matmul(x, w, columns=columns), x, w, HALVES)


@pytest.mark.parametrize("block", [blocks.F32, blocks.F16, blocks.BF16], ids=lambda b: b.name)
def test_matmul_of_floats_ends_anywhere_in_a_step(block):
    for k in (31, 32, 33, 64, 103):
        w, x = random_tensor(block, 9, k, seed=k), activations(11, k)
        assert_product(matmul(x, w, columns=32), x, w, HALVES)


@pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "float16", "bfloat16"])
def test_matmul_finishes(dtype):
    w, x = random_tensor(blocks.Q4_K, 70, 512, seed=6), activations(40, 512, dtype)
    bias, add, gate = activations(1, 70)[0], activations(40, 70, dtype), activations(40, 70, dtype)
    found = matmul(x, w, bias=bias, add=add)
    assert_product(found, x, w, HALVES, wide(bias) + wide(add))
    factor = activated(wide(gate), "gelu")
    wanted = factor * (wide(x) @ float64(w).T)
    allowed = HALVES * np.abs(factor) * size(wide(x), float64(w))
    found = matmul(x, w, gate=(gate, "gelu"))
    assert (np.abs(wide(found) - wanted) <= allowed).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: matvec(x, w),
        lambda x, w: matvec(x[:, :32], w),
        lambda x, w: gate_up(x[:2], w, random_tensor(blocks.Q8_0, 5, 64, seed=1), "silu"),
        lambda x, w: matmul(x[:, :32], w),
        lambda x, w: rows(w, x),
        lambda x, w: norm_matvec(x[:2], w, (mx.ones(32), 1e-5)),
        lambda x, w: matvecs(x[:2], [w, w], [None, None], norm=(mx.ones(65), 1e-5)),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match=r"fit|rows|ids"):
        call(activations(9, 64), random_tensor(blocks.Q8_0, 4, 64, seed=1))
