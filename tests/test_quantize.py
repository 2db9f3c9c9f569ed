"""Weights become blocks: never further from them than llama.cpp's, and exactly where a block can hold them."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from quantizing import QUANTIZED, dequantize, draw, error, every, importance_of, quantized
from random_blocks import matrix

from mlx_ferrum import blocks
from mlx_ferrum.kernels.cpu import build
from mlx_ferrum.kernels.quantize import native

ONE_SCALE = (blocks.Q4_0, blocks.Q5_0, blocks.Q8_0, blocks.IQ4_NL, blocks.MXFP4)
KINDS = ("normal", "heavy", "uniform", "positive", "outliers", "small")
# Root mean square errors over that of the weights, for a normal distribution: 1 % more than found.
NORMAL = {
    "F32": 0.0, "F16": 2.10e-4, "BF16": 1.68e-3,
    "Q4_0": 0.0817, "Q4_1": 0.0699, "Q5_0": 0.0404, "Q5_1": 0.0341, "Q8_0": 0.00486,
    "Q2_K": 0.2632, "Q3_K": 0.1457, "Q4_K": 0.0698, "Q5_K": 0.0339, "Q6_K": 0.0166,
    "Q8_K": 0.00690, "IQ4_NL": 0.0740, "IQ4_XS": 0.0744, "MXFP4": 0.1128,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama_cpp():
    """llama.cpp's quantizer, from the library inside xllamacpp: (block, (rows, k), importance) -> blocks."""
    module = pytest.importorskip("xllamacpp")
    library = next(Path(module.__file__).parent.glob("*.so"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(block, x, importance=None):
        raw = np.empty((len(x), block.row_bytes(x.shape[1])), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        done = function(block.id, x.ctypes.data, raw.ctypes.data, 0, *x.shape, weights)
        assert done == raw.nbytes
        return raw

    return quantize


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
# llama.cpp quantizes activations to Q8_K only
@pytest.mark.parametrize(
    "block", [b for b in QUANTIZED if b is not blocks.Q8_K], ids=lambda b: b.name
)
def test_no_further_than_llama_cpp(llama_cpp, block, kind, weighted):
    rng = np.random.default_rng(1)
    x, importance = draw(kind, rng, (64, 1024)), importance_of(rng, 1024) if weighted else None
    ours, theirs = block.quantize(x, importance), llama_cpp(block, x, importance)
    count = 1.0 if importance is None else importance
    assert error(block, ours, x, count) <= error(block, theirs, x, count)


@every
def test_error_of_normal_weights(block):
    x = draw("normal", np.random.default_rng(2), (64, 1024))
    assert error(block, block.quantize(x), x) <= NORMAL[block.name]


@quantized
def test_more_effort_is_less_error(block):
    rng = np.random.default_rng(3)
    x, importance = draw("normal", rng, (24, 768)), importance_of(rng, 768)
    for count in (None, importance):
        fast, normal, best = (
            error(block, block.quantize(x, count, effort), x, 1.0 if count is None else count)
            for effort in native.EFFORTS
        )
        assert best <= normal <= fast


@every
def test_shape_and_order_of_blocks(block):
    x = draw("normal", np.random.default_rng(4), (6, 1536)).reshape(2, 3, 1536)
    raw = block.quantize(x)
    assert raw.dtype == np.uint8 and raw.shape == (2, 3, block.row_bytes(1536))
    alone = block.quantize(x[1, 2, 512:1024])
    first = block.row_bytes(512)
    assert np.array_equal(raw[1, 2, first : first + len(alone)], alone)
    assert np.array_equal(block.quantize(x.swapaxes(0, 1)), raw.swapaxes(0, 1))
    assert block.quantize(x[:0]).shape == (0, 3, block.row_bytes(1536))


@pytest.mark.parametrize("level", build.levels())
@quantized
def test_every_level_and_count_of_threads_finds_the_same(block, level):
    """Threads to the bit. Levels up to the rounding of sums, which decides between scales that are as good."""
    rng = np.random.default_rng(5)
    x, importance = draw("heavy", rng, (67, 768)), importance_of(rng, 768)

    def quantize(threads: int, level: str) -> np.ndarray:
        raw = np.empty((67, block.row_bytes(768)), np.uint8)
        options = {"type": block.id, "limit": block.limit, "effort": "fast"}
        native.quantize(x, importance[None], raw, threads=threads, level=level, **options)
        return raw

    raw = quantize(1, level)
    assert np.array_equal(raw, quantize(5, level))
    expected = error(block, quantize(2, "native"), x, importance)
    assert error(block, raw, x, importance) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("effort", native.EFFORTS)
@pytest.mark.parametrize("block", [blocks.Q2_K, blocks.Q3_K], ids=lambda b: b.name)
def test_half_of_the_lost_length_is_given_back(block, effort):
    """Blocks of least squared error e hold 1 - e of the weights' length: the root of that is left."""
    rng = np.random.default_rng(7)
    x, importance = draw("normal", rng, (64, 1024)), importance_of(rng, 1024)
    for count in (None, importance):
        found = dequantize(block, block.quantize(x, count, effort))
        weight = np.float64(1) if count is None else count.astype(np.float64)
        length = (weight * x * found).sum() / (weight * x * x).sum()
        missed = (weight * (x - found) ** 2).sum() / (weight * x * x).sum()
        assert length == pytest.approx(np.sqrt(1 - missed), rel=3e-3)


def full_q4_k(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 256): what Q4_K blocks hold whose largest scale and minimum are 63, and which use both end codes."""
    s, m = rng.integers(1, 64, (2, n, 8, 1))
    s[:, rng.integers(8)] = m[:, rng.integers(8)] = 63
    q = rng.integers(0, 16, (n, 8, 32))
    q[..., 3], q[..., 20] = 0, 15
    d = rng.uniform(0.001, 1, (n, 1, 1)).astype(np.float16).astype(np.float32)
    dmin = d * rng.choice(np.array([0.5, 1, 4], np.float32), (n, 1, 1))
    return (d * s * q - dmin * m).reshape(n, 256).astype(np.float32)


def full_q6_k(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, 256): what Q6_K blocks hold with a scale of -128, and the code 0 in each group."""
    s = rng.integers(-128, 128, (n, 16, 1))
    s[:, rng.integers(16)] = -128
    q = rng.integers(0, 64, (n, 16, 16))
    q[..., 5] = 0
    d = rng.uniform(0.001, 1, (n, 1, 1)).astype(np.float16).astype(np.float32)
    return (d * s * (q - 32)).reshape(n, 256).astype(np.float32)


@pytest.mark.parametrize(
    ("block", "make"),
    [(blocks.Q4_K, full_q4_k), (blocks.Q6_K, full_q6_k)],
    ids=["Q4_K", "Q6_K"],
)
def test_what_a_block_can_hold_is_held(block, make):
    x = make(np.random.default_rng(6), 200)
    found = dequantize(block, block.quantize(x))
    assert np.array_equal(found, x)


@pytest.mark.parametrize("effort", native.EFFORTS)
@pytest.mark.parametrize("block", ONE_SCALE, ids=lambda b: b.name)
def test_quantizing_again_changes_nothing(block, effort):
    x = draw("normal", np.random.default_rng(7), (16, 768))
    once = dequantize(block, block.quantize(x, effort=effort))
    again = dequantize(block, block.quantize(once, effort=effort))
    changed = (again != once).reshape(-1, block.weights).any(axis=1)
    # a block without its end code may be as near to another scale's
    assert changed.mean() <= 0.01


@pytest.mark.parametrize(
    ("block", "end"),
    [(blocks.Q4_0, 8), (blocks.Q5_0, 16), (blocks.Q8_0, 127), (blocks.IQ4_NL, 127)],
    ids=lambda value: getattr(value, "name", None),
)
def test_random_blocks_are_held(block, end):
    """Those whose largest code is the last one."""
    raw = matrix(np.random.default_rng(8), block.name, 256, 512).data.reshape(-1, block.bytes)
    x, d = dequantize(block, raw), raw[:, :2].copy().view(np.float16).astype(np.float32)
    held = x[np.abs(x).max(axis=1) == np.abs(d[:, 0]) * end]
    assert len(held) > 100 and np.array_equal(dequantize(block, block.quantize(held)), held)
