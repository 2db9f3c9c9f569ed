"""Weights become blocks: never further from them than llama.cpp's, and exactly where a block can hold them."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from mlx_ferrum import blocks

K_QUANTS = (blocks.Q4_K, blocks.Q6_K)
QUANTIZED = (*K_QUANTS, blocks.Q8_0)
ALL = (*QUANTIZED, blocks.F16, blocks.F32)
# Root mean square errors over that of the weights, for a normal distribution: 1 % more than found.
NORMAL = {"Q4_K": 0.0706, "Q6_K": 0.0171, "Q8_0": 0.00542, "F16": 2.1e-4, "F32": 0.0}


def draw(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    normal = rng.normal(size=shape)
    x = {
        "normal": normal,
        "heavy": rng.standard_t(3, shape),
        "uniform": rng.uniform(-1, 1, shape),
        "positive": rng.uniform(0.5, 1.5, shape),
        "sparse": normal * (rng.random(shape) < 0.1),
        "outliers": normal * np.where(rng.random(shape) < 0.002, 50, 1),
        "small": normal * 1e-3,
    }[kind]
    return x.astype(np.float32)


def dequantize(block: type[blocks.Block], raw: np.ndarray) -> np.ndarray:
    """By gguf-py."""
    kind = gguf.GGMLQuantizationType[block.name]
    return gguf.quants.dequantize(raw.reshape(-1, raw.shape[-1]), kind).reshape(*raw.shape[:-1], -1)


def error(block: type[blocks.Block], raw: np.ndarray, x: np.ndarray) -> float:
    return float(np.sqrt(np.mean((dequantize(block, raw) - x) ** 2) / np.mean(x**2)))


@pytest.fixture(scope="module")
def llama_cpp():
    """llama.cpp's quantizer, from the library inside xllamacpp: (block, (rows, k)) -> (rows, row bytes)."""
    module = pytest.importorskip("xllamacpp")
    library = next(Path(module.__file__).parent.glob("*.so"))
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(block: type[blocks.Block], x: np.ndarray) -> np.ndarray:
        raw = np.empty((len(x), block.row_bytes(x.shape[1])), np.uint8)
        assert function(block.id, x.ctypes.data, raw.ctypes.data, 0, *x.shape, None) == raw.nbytes
        return raw

    return quantize


@pytest.mark.parametrize(
    "kind", ["normal", "heavy", "uniform", "positive", "sparse", "outliers", "small"]
)
@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
def test_no_further_than_llama_cpp(llama_cpp, block, kind):
    x = draw(kind, np.random.default_rng(), (64, 1024))
    assert error(block, block.quantize(x), x) <= 1.02 * error(block, llama_cpp(block, x), x)


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
def test_error_of_normal_weights(block):
    x = draw("normal", np.random.default_rng(), (64, 1024))
    assert error(block, block.quantize(x), x) <= NORMAL[block.name]


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
def test_shape_and_order_of_blocks(block):
    x = draw("normal", np.random.default_rng(), (6, 1536)).reshape(2, 3, 1536)
    raw = block.quantize(x)
    assert raw.dtype == np.uint8 and raw.shape == (2, 3, block.row_bytes(1536))
    alone = block.quantize(x[1, 2, 512:1024])
    first = block.row_bytes(512)
    assert np.array_equal(raw[1, 2, first : first + len(alone)], alone)
    assert block.quantize(x[:0]).shape == (0, 3, block.row_bytes(1536))


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
    x = make(np.random.default_rng(), 200)
    found = dequantize(block, block.quantize(x))
    assert np.array_equal(found, x)


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, -777.0])
def test_constants(block, value):
    found = dequantize(block, block.quantize(np.full((1, 512), value, np.float32)))
    assert np.abs(found / np.float32(value) - 1).max() <= 2**-11  # a float16's rounding


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
def test_zeros_stay(block):
    x = np.zeros((2, 512), np.float32)
    x[1, 256:] = draw("normal", np.random.default_rng(), (1, 256))
    found = dequantize(block, block.quantize(x))
    assert not found[0].any() and not found[1, :256].any() and found[1, 256:].any()


@pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)
@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-20, 1e-7])
def test_the_smallest(block, scale):
    x = draw("normal", np.random.default_rng(), (4, 256)) * np.float32(scale)
    found = dequantize(block, block.quantize(x))
    assert np.abs(found - x).max() <= 2.0**-24  # the smallest float16


@pytest.mark.parametrize("block", [*QUANTIZED, blocks.F16], ids=lambda b: b.name)
def test_the_largest(block):
    x = draw("uniform", np.random.default_rng(), (4, 256)) * np.float32(block.limit)
    assert error(block, block.quantize(x), x) < 0.07
    x[1, 7] = block.limit
    assert np.isfinite(dequantize(block, block.quantize(x))).all()


@pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_no_block_can_hold_is_refused(block, value):
    x = np.zeros((2, 256), np.float32)
    x[1, 100] = value
    with pytest.raises(ValueError, match=rf"{block.name}: weights must be within .*found {value}"):
        block.quantize(x)


def test_refusals():
    with pytest.raises(ValueError, match=r"Q4_K: weights must be within .*found 1e"):
        blocks.Q4_K.quantize(np.full((1, 256), 1e30, np.float32))
    with pytest.raises(ValueError, match="Q6_K: a row of 100"):
        blocks.Q6_K.quantize(np.zeros((1, 100), np.float32))
    with pytest.raises(NotImplementedError, match="quantized to IQ4_XS"):
        blocks.IQ4_XS.quantize(np.zeros((1, 256), np.float32))
