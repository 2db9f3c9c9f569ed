"""What the tests of quantizing share: weights, importance, errors."""

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlx_ferrum import blocks

FLOATS = (blocks.F32, blocks.F16, blocks.BF16)
ALL = blocks.SUPPORTED
QUANTIZED = tuple(block for block in ALL if block not in FLOATS)
every = pytest.mark.parametrize("block", ALL, ids=lambda b: b.name)
quantized = pytest.mark.parametrize("block", QUANTIZED, ids=lambda b: b.name)


def draw(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    normal = rng.normal(size=shape)
    x = {
        "normal": normal,
        "heavy": rng.standard_t(3, shape),
        "uniform": rng.uniform(-1, 1, shape),
        "positive": rng.uniform(0.5, 1.5, shape),
        "outliers": normal * np.where(rng.random(shape) < 0.002, 50, 1),
        "small": normal * 1e-3,
    }[kind]
    return x.astype(np.float32)


def importance_of(rng: np.random.Generator, k: int) -> np.ndarray:
    return np.exp(1.5 * rng.normal(size=k)).astype(np.float32)


def dequantize(block: type[blocks.Block], raw: np.ndarray) -> np.ndarray:
    """By gguf-py, but Q8_K, which it does not know."""
    if block is blocks.Q8_K:
        return np.array(block.dequantize(mx.array(raw)))
    kind = gguf.GGMLQuantizationType[block.name]
    return gguf.quants.dequantize(raw.reshape(-1, raw.shape[-1]), kind).reshape(*raw.shape[:-1], -1)


def error(
    block: type[blocks.Block], raw: np.ndarray, x: np.ndarray, importance: np.ndarray | float = 1
) -> float:
    """Root of the weighted mean square, over that of the weights."""
    off = (dequantize(block, raw).astype(np.float64) - x) ** 2
    return float(np.sqrt(np.mean(importance * off) / np.mean(importance * x.astype(float) ** 2)))
