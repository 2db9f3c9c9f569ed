"""Every backend against NumPy in float64, written another way."""

import math
from typing import get_args

import mlx.core as mx
import numpy as np
import pytest

from mlx_ferrum import blocks, ops
from mlx_ferrum.tensor import QTensor

SHAPES = [(1, 1, 1), (3, 5, 2), (1, 257, 1), (2, 33, 3)]  # batch, rows, blocks a row


def random_tensor(block: type[blocks.Block], *shape: int, seed: int) -> QTensor:
    """Random bytes whose float fields are replaced by numbers of size 1 / k, so that sums stay tame."""
    rng = np.random.default_rng(seed)
    k = shape[-1]
    n = int(np.prod(shape)) // block.weights
    raw = rng.integers(0, 256, (n, block.bytes), dtype=np.uint8)
    start = 0
    sizes = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "f16": 2, "bf16": 2, "u32": 4, "f32": 4}
    for dtype, count in block.fields.values():
        stop = start + sizes[dtype] * count
        if dtype in ("f16", "f32"):
            values = rng.normal(size=(n, count)) / k
            raw[:, start:stop] = values.astype(f"<{dtype[0]}{sizes[dtype]}").view(np.uint8)
        elif dtype == "bf16":
            raw[:, start:stop] = (rng.normal(size=(n, 1)) / k).astype("<f4").view(np.uint8)[:, 2:]
        start = stop
    if block is blocks.MXFP4:
        raw[:, 0] = rng.integers(115, 120, n)
    return QTensor(block, shape, raw.reshape(-1))


def float64(w: QTensor) -> np.ndarray:
    return np.asarray(w.block.dequantize(mx.array(w.data))).astype(np.float64)


def assert_close(found, wanted: np.ndarray, relative: float = 1e-5) -> None:
    """Errors relative to the largest value: float32 sums of up to a few thousand terms stay below 1e-5."""
    assert found.shape == wanted.shape
    assert np.abs(np.asarray(found) - wanted).max() <= relative * max(np.abs(wanted).max(), 1e-6)


def assert_product(backend, found, x: np.ndarray, w: QTensor) -> None:
    """found is x wᵀ as closely as the backend promises."""
    x, weights = x.astype(np.float64), float64(w)
    wanted = x @ weights.T
    assert found.shape == wanted.shape
    worst = (np.abs(np.asarray(found) - wanted) / backend.product_error(x, weights)).max()
    assert worst <= 1, f"{worst:.2f} times the error allowed"


@pytest.mark.parametrize("block", blocks.SUPPORTED, ids=lambda b: b.name)
@pytest.mark.parametrize("batch, rows, n", SHAPES)
def test_matmul(backend, block, batch, rows, n):
    w = random_tensor(block, rows, n * block.weights, seed=rows)
    x = np.random.default_rng(n).normal(size=(batch, 2, n * block.weights)).astype(np.float32)
    assert_product(backend, ops.matmul(backend.array(x), w), x, w)


def test_matmul_in_several_tiles(reference, monkeypatch):
    monkeypatch.setattr("mlx_ferrum.backends.reference.TILE_WEIGHTS", 7 * 64)
    w = random_tensor(blocks.Q4_1, 45, 64, seed=1)
    x = np.random.default_rng(2).normal(size=(4, 64)).astype(np.float32)
    assert_product(reference, ops.matmul(mx.array(x), w), x, w)


def test_matmuls_of_mixed_types(backend):
    ws = [
        random_tensor(b, 8 + i, 256, seed=i)
        for i, b in enumerate((blocks.Q4_K, blocks.Q6_K, blocks.F16))
    ]
    x = np.random.default_rng(3).normal(size=(3, 256)).astype(np.float32)
    for found, w in zip(ops.matmuls(backend.array(x), ws), ws, strict=True):
        assert_product(backend, found, x, w)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_bias_and_residual_are_added(backend, n):
    rng = np.random.default_rng(n)
    ws = [random_tensor(b, 45, 256, seed=b.id) for b in (blocks.Q4_K, blocks.F16, blocks.Q5_0)]
    x = rng.normal(size=(n, 256)).astype(np.float32)
    bias, add = (rng.normal(size=s).astype(np.float32) for s in (45, (n, 45)))
    for w in ws:
        plain = np.asarray(ops.matmul(backend.array(x), w))
        found = ops.matmul(backend.array(x), w, bias=mx.array(bias), add=backend.array(add))
        assert_close(found, plain + bias + add, relative=1e-6)
        assert_close(ops.matmul(backend.array(x), w, add=backend.array(add)), plain + add, 1e-6)
    biases = [mx.array(bias), None, mx.array(-bias)]
    products = ops.matmuls(backend.array(x), ws, biases)
    for found, w, sign in zip(products, ws, (1, 0, -1), strict=True):
        plain = np.asarray(ops.matmul(backend.array(x), w))
        assert_close(found, plain + sign * bias, relative=1e-6)


ACTIVATIONS = {
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("act", get_args(ops.Activation))
def test_gate_up(backend, act):
    gate, up = (random_tensor(b, 21, 256, seed=b.id) for b in (blocks.Q5_K, blocks.Q8_0))
    x = np.random.default_rng(4).normal(size=(2, 3, 256)).astype(np.float32) * 5
    wide = x.astype(np.float64)
    g, u = wide @ float64(gate).T, wide @ float64(up).T
    activated = ACTIVATIONS[act](g)
    found = np.asarray(ops.gate_up(backend.array(x), gate, up, act))
    # both activations are at most 1.13 times as steep as their argument
    errors = [backend.product_error(wide, float64(w)) for w in (gate, up)]
    error = 1.13 * errors[0] * (np.abs(u) + errors[1]) + errors[1] * np.abs(activated)
    assert (np.abs(found - activated * u) <= error + 1e-6 * np.abs(activated * u)).all()


def test_rows_and_dequantize(backend):
    w = random_tensor(blocks.Q8_0, 40, 96, seed=9)
    ids = np.array([[0, 39, 7], [7, 7, 1]])
    assert np.array_equal(np.asarray(ops.rows(w, mx.array(ids))), float64(w)[ids])
    assert np.array_equal(np.asarray(ops.dequantize(w)), float64(w))
    scaled = float64(w)[ids].astype(np.float32) * np.float32(25.3)
    assert np.array_equal(np.asarray(ops.rows(w, mx.array(ids), 25.3)), scaled)


@pytest.mark.parametrize("shape", [(1, 7), (3, 2, 64), (130, 576)], ids=str)
def test_rms_norm(backend, shape):
    rng = np.random.default_rng(shape)
    x, weight, add = (rng.normal(size=s).astype(np.float32) for s in (shape, shape[-1], shape))
    wide = 5 * x.astype(np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight
    arguments = backend.array(5 * x), mx.array(weight), 1e-6
    assert_close(ops.rms_norm(*arguments), wanted)
    assert_close(ops.rms_norm(*arguments, add=backend.array(add)), wanted + add)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_a_norm_before_products(backend, n):
    """As the norm, and then the products. Activations that are staged are rounded before or after they are scaled."""
    relative = 2e-3 if backend.staged and n > 1 else 1e-5
    rng = np.random.default_rng(n)
    ws = [random_tensor(b, 45, 256, seed=b.id) for b in (blocks.Q4_K, blocks.F16, blocks.Q5_0)]
    x = backend.array(7 * rng.normal(size=(n, 1, 256)).astype(np.float32))
    norm = mx.array(rng.normal(size=256).astype(np.float32)), 1e-3
    plain = ops.rms_norm(x, *norm)
    bias = mx.array(rng.normal(size=45).astype(np.float32))
    found = ops.matmuls(x, ws, [None, bias, None], norm=norm)
    for y, wanted in zip(found, ops.matmuls(plain, ws, [None, bias, None]), strict=True):
        assert_close(y, np.asarray(wanted), relative)
    gated = np.asarray(ops.gate_up(plain, ws[0], ws[2], "silu"))
    assert_close(ops.gate_up(x, ws[0], ws[2], "silu", norm=norm), gated, relative)
    normed, y = ops.norm_matmul(x, ws[1], norm)
    assert_close(normed, np.asarray(plain), relative=1e-6)
    assert_close(y, np.asarray(ops.matmul(plain, ws[1])))


def test_a_wrong_width_is_refused(backend):
    w = random_tensor(blocks.Q8_0, 4, 64, seed=9)
    with pytest.raises(
        ValueError, match=r"x of shape \(2, 32\) does not fit QTensor\(Q8_0, \(4, 64\)\)"
    ):
        ops.matmul(backend.array(np.zeros((2, 32), np.float32)), w)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 3], [70, 33]], ids=str)
def test_attend_both_ways(backend, lengths):
    """What lies behind a sequence's end is not seen."""
    rng = np.random.default_rng(len(lengths))
    most = max(lengths) + 1
    q, k, v = rng.normal(size=(3, len(lengths), 3, most, 8)).astype(np.float32)
    given = [backend.array(x) for x in (q, k, v)]
    found = np.array(ops.attend_both_ways(given[0], given[1], given[2], lengths, scale=0.3))
    assert found.shape == q.shape
    assert np.isfinite(found).all()
    for i, n in enumerate(lengths):
        scores = q[i, :, :n].astype(np.float64) @ k[i, :, :n].swapaxes(1, 2) * 0.3
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = weights / weights.sum(-1, keepdims=True) @ v[i, :, :n]
        assert_close(found[i, :, :n], wanted)


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 5000)], ids=str)
def test_gelu_is_exact(backend, shape):
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32) * 4
    wanted = [t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in x.astype(np.float64).flat]
    found = np.array(ops.gelu(backend.array(x)))
    # erf by a polynomial, to 1.5e-7; the tanh form differs by 5e-4
    np.testing.assert_allclose(found.ravel(), wanted, atol=2e-6)


def test_unknown_backends_are_refused(backend):
    with pytest.raises(
        ValueError, match="no backend is called 'abacus'; there is: metal, cuda, cpu, reference"
    ):
        ops.use_backend("abacus")
    assert ops.backend_name() == backend.name


@pytest.mark.parametrize(
    "name, threads", [("reference", 2), ("cpu", 0), ("cpu", -1), ("cpu", 100_000)]
)
def test_bad_thread_counts_are_refused(reference, name, threads):
    with pytest.raises(ValueError, match=r"threads can be set for the cpu|expected 1 to 512"):
        ops.use_backend(name, threads=threads)
    assert ops.backend_name() == "reference"
