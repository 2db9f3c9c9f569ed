"""Random weights of any block type: random bytes, under scales that keep the weights near 1 / sqrt(k).

So every code of a type occurs, and sums over k stay near 1.
"""

from __future__ import annotations

import math
import mmap

import mlx.core as mx
import numpy as np

from ..blocks import MXFP4, Block
from ..tensor import QTensor

_FLOATS = {"f16": "<f2", "f32": "<f4", "bf16": "<u2"}
_INTEGERS = {"u8": "u1", "i8": "i1", "u16": "<u2", "i16": "<i2", "u32": "<u4"}
_BIAS = 127  # of MXFP4's exponent
# GGUF aligns tensors to 32 bytes; Metal then binds the window with an offset, as in a file.
_OFFSET = 3 * 32


def random_tensor(rng: np.random.Generator, block: type[Block], rows: int, k: int) -> QTensor:
    """Draw a (rows, k) tensor. Raises ValueError if k is not a multiple of the block."""
    raw = rng.integers(0, 256, (rows, block.row_bytes(k)), np.uint8)
    fields = raw.reshape(-1, block.bytes).view(_layout(block))[:, 0]
    floats = {name: dtype for name, (dtype, _) in block.fields.items() if dtype in _FLOATS}
    draws = {name: _signed(rng, fields[name].shape) for name in floats}
    exponents = rng.integers(-1, 2, (len(fields), 1))

    def scale(unit: float) -> None:
        for name, dtype in floats.items():
            fields[name] = _stored(draws[name] * unit, dtype)
        if block is MXFP4:
            fields["e"] = _BIAS + round(math.log2(unit)) + exponents

    scale(1.0)
    with mx.stream(mx.cpu):
        deviation = float(np.array(block.dequantize(mx.array(raw))).std())
    scale(1 / (deviation * math.sqrt(k)))
    return QTensor(block, (rows, k), _paged(raw), _OFFSET)


def _layout(block: type[Block]) -> np.dtype:
    """The fields of a block as NumPy sees them."""
    dtypes = _FLOATS | _INTEGERS
    return np.dtype([(name, dtypes[dtype], (n,)) for name, (dtype, n) in block.fields.items()])


def _signed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Factors of either sign, none of them near 0."""
    return rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a field holds them; bfloat16 is the upper half of a float32."""
    if dtype == "bf16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(_FLOATS[dtype])


def _paged(raw: np.ndarray) -> np.ndarray:
    """The bytes from `_OFFSET` on of memory that starts on a page, as a mapped file does."""
    memory = np.frombuffer(mmap.mmap(-1, _OFFSET + raw.size), np.uint8)
    memory[_OFFSET:] = raw.reshape(-1)
    return memory
