"""Random blocks of any type, of a chosen standard deviation: every code appears, nothing is rounded to fit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_ferrum.blocks import Block

FLOATS = {"F32", "F16", "BF16"}
EXPONENTS = {"MXFP4": 0}  # where a block keeps an exponent of two instead of a float
SAMPLE = 512  # blocks


def rows(
    rng: np.random.Generator, block: type[Block], shape: tuple[int, int], std: float
) -> np.ndarray:
    """Draw a matrix. shape: (rows, k) weights -> (rows, row bytes) uint8"""
    count, k = shape
    if block.name in FLOATS:
        return _floats(rng.standard_normal(shape, np.float32) * std, block.name)
    nbytes = count * block.row_bytes(k)
    raw = np.frombuffer(rng.bytes(nbytes), np.uint8).reshape(-1, block.bytes).copy()
    _set_scales(raw, block, std)
    return raw.reshape(count, -1)


def _floats(values: np.ndarray, name: str) -> np.ndarray:
    if name == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(np.float16 if name == "F16" else np.float32).view(np.uint8)


def _set_scales(raw: np.ndarray, block: type[Block], std: float) -> None:
    """raw: (n, block bytes), changed in place: all blocks get one scale, and the minimum that makes the mean 0."""
    if block.name in EXPONENTS:
        at = EXPONENTS[block.name]
        raw[:, at] = 127
        raw[:, at] = 127 + round(np.log2(std / _weights(raw, block).std()))
        return
    scale, *minimum = _float_fields(block)
    ratio = 0.0
    for field in minimum:
        means = []
        for chosen in (scale, field):
            _fill(raw[:SAMPLE], {scale: 0.0, field: 0.0, chosen: 1.0})
            means.append(_weights(raw, block).mean())
        ratio = -means[0] / means[1]
    _fill(raw[:SAMPLE], {scale: 1.0, **dict.fromkeys(minimum, ratio)})
    unit = std / _weights(raw, block).std()
    _fill(raw, {scale: unit, **dict.fromkeys(minimum, unit * ratio)})


def _float_fields(block: type[Block]) -> list[tuple[int, str]]:
    """(byte offset, dtype) of a block's float fields: its scale, then its minimum if it has one."""
    sizes = {"u8": 1, "i8": 1, "u16": 2, "i16": 2, "f16": 2, "u32": 4, "f32": 4}
    found, start = [], 0
    for kind, count in block.fields.values():
        if kind.startswith("f"):
            found.append((start, kind))
        start += sizes[kind] * count
    return found


def _fill(raw: np.ndarray, values: dict[tuple[int, str], float]) -> None:
    for (start, kind), value in values.items():
        encoded = np.array([value], kind.replace("f", "<f").replace("16", "2").replace("32", "4"))
        raw[:, start : start + encoded.nbytes] = encoded.view(np.uint8)


def _weights(raw: np.ndarray, block: type[Block]) -> np.ndarray:
    return np.asarray(block.dequantize(mx.array(raw[:SAMPLE])))
