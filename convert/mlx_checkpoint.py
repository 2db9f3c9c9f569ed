"""Weights that MLX has quantized, as tensors of a checkpoint: decoded, or repacked into GGUF blocks where those fit.

A module NAME has NAME.weight, uint32 words of codes, NAME.scales and, in affine mode, NAME.biases.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlx_ferrum.blocks import MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Block

from . import affine, repack
from .affine import Layout
from .checkpoint import Stored
from .losses import Errors, squares

CHUNK = 1 << 22  # scales that are looked at together
HALF_MAX = 65504.0
PARTS = (".weight", ".scales", ".biases")
MODES = {"affine": {*affine.BITS, 1}, "mxfp4": {4}}
FLOATS = ("F32", "F16", "BF16")
# Types that may hold codes of so many bits, the smallest first. In those of MIDDLE the bias is -MIDDLE times the scale.
HOLDERS: dict[int, tuple[type[Block], ...]] = {
    **dict.fromkeys((1, 2, 3), (Q4_1,)),
    4: (Q4_0, Q4_1),
    5: (Q5_0, Q5_1),
    6: (),
    8: (Q8_0,),
}


@dataclass(frozen=True)
class Quantized(Stored):
    """A quantized matrix, or a stack of them; shape and dtype are those of its weights.

    codes, scales, biases: as stored; no biases in mxfp4
    holder: the block type that keeps the codes, None if there is none
    errors: counts what `packed` loses
    """

    layout: Layout = field(default_factory=lambda: Layout(4, 32))
    codes: Stored | None = None
    scales: Stored | None = None
    biases: Stored | None = None
    holder: type[Block] | None = None
    errors: Errors = field(default_factory=Errors, compare=False)

    @property
    def repacks(self) -> type[Block] | None:
        return self.holder

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        stop = self.rows if stop is None else stop
        if self.layout.mode == "mxfp4":
            x = repack.decoded(MXFP4, self._blocks(MXFP4, start, stop))
        else:
            x = self._rows(start, stop).weights
        return x.reshape(stop - start, *self.shape[1:])

    def packed(self, start: int, stop: int) -> np.ndarray:
        assert self.holder is not None
        raw = self._blocks(self.holder, start, stop)
        return raw.reshape(stop - start, *self.shape[1:-1], -1)

    def _blocks(self, block: type[Block], start: int, stop: int) -> np.ndarray:
        """(rows, row bytes) of a type that keeps the codes"""
        assert self.scales is not None
        if block is MXFP4:
            codes = self._codes(start, stop)
            exponents = self.scales.raw(start, stop).reshape(len(codes), -1)
            return repack.mxfp4_blocks(codes, exponents)
        rows, times = self._rows(start, stop), self.layout.group // repack.GROUP
        self._note(rows)
        scales, biases = (np.repeat(x, times, axis=1) for x in (rows.scales, rows.biases))
        return repack.blocks(block, affine.Rows(rows.codes, scales, biases))

    def _note(self, rows: affine.Rows) -> None:
        """Count what rounding scales and biases to float16 loses."""
        halves = [x.astype(np.float16).astype(np.float32) for x in (rows.scales, rows.biases)]
        if not all(map(np.array_equal, halves, (rows.scales, rows.biases))):
            x = rows.weights
            error = squares(affine.Rows(rows.codes, *halves).weights - x)
            assert self.holder is not None
            self.errors.add(self.name, self.dtype, self.holder.name, (error, squares(x)))

    def _codes(self, start: int, stop: int) -> np.ndarray:
        """(rows, k) uint8, the rows of all matrices from start to stop one after the other"""
        assert self.codes is not None
        words = self.codes.raw(start, stop)
        return affine.unpack(
            words.reshape(-1, self.shape[-1] * self.layout.bits // 8), self.layout.bits
        )

    def _rows(self, start: int, stop: int) -> affine.Rows:
        assert self.scales is not None and self.biases is not None
        codes = self._codes(start, stop)
        groups = (x.read(start, stop).reshape(len(codes), -1) for x in (self.scales, self.biases))
        return affine.Rows(codes, *groups)


def quantized(
    tensors: Mapping[str, Stored],
    quantization: Mapping[str, Any],
    errors: Errors,
    *,
    repacked: bool = True,
    rounding: bool = True,
) -> dict[str, Stored]:
    """The tensors of a checkpoint with quantized ones in place of their parts.

    quantization: of config.json; errors: counts what the tensors lose when they are read
    repacked: whether GGUF blocks may hold the codes; rounding: also those that round scales to float16
    Raises ValueError for parts that are missing or do not fit together, NotImplementedError for a mode that is not
    supported.
    """
    modules = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    parts = {f"{module}{part}" for module in modules for part in PARTS}
    found = {name: stored for name, stored in tensors.items() if name not in parts}
    stray = next((name for name in found if name.endswith(".biases")), None)
    if stray is not None:
        raise ValueError(f"tensor {stray!r}: there are no scales for it")
    for module in modules:
        made = _module(module, tensors, _layout(module, quantization))
        holder = _holder(made, rounding) if repacked else None
        found[f"{module}.weight"] = replace(made, holder=holder, errors=errors)
    return found


def _layout(module: str, quantization: Mapping[str, Any]) -> Layout:
    """How a module is quantized: by its own entry, or the common one."""
    own = quantization.get(module)
    given = own if isinstance(own, Mapping) else quantization
    where = f"config.json: quantization of {module}"
    bits: Any
    group: Any
    bits, group, mode = given.get("bits"), given.get("group_size"), given.get("mode", "affine")
    if not isinstance(mode, str) or mode not in MODES:
        raise NotImplementedError(
            f"{where}: mode {mode!r} is not supported, expected {' or '.join(MODES)}"
        )
    if not _is_one_of(bits, MODES[mode]) or not _is_one_of(group, affine.GROUPS):
        raise ValueError(f"{where}: {bits!r} bits in groups of {group!r} are not what {mode} has")
    if mode == "mxfp4" and group != repack.GROUP:
        raise ValueError(f"{where}: expected groups of {repack.GROUP} in mxfp4, found {group}")
    return Layout(bits, group, mode)


def _is_one_of(value: Any, numbers: Collection[int]) -> bool:
    return type(value) is int and value in numbers


def _module(module: str, tensors: Mapping[str, Stored], layout: Layout) -> Quantized:
    """Raises ValueError for parts that are missing, or of wrong types or shapes."""
    wanted = PARTS[:2] if layout.mode == "mxfp4" else PARTS
    missing = next((part for part in wanted if f"{module}{part}" not in tensors), None)
    if missing is not None:
        raise ValueError(f"tensor '{module}{missing}' is missing, {module}.scales is there")
    codes, scales, *biases = (tensors[f"{module}{part}"] for part in wanted)
    if len(scales.shape) < 2 or 0 in scales.shape:
        raise ValueError(f"tensor {scales.name!r}: expected a matrix, found shape {scales.shape}")
    shape = (*scales.shape[:-1], scales.shape[-1] * layout.group)
    _expect(codes, ("U32",), (*shape[:-1], shape[-1] * layout.bits // 32))
    _expect(scales, FLOATS if biases else ("U8",), scales.shape)
    for stored in biases:
        _expect(stored, FLOATS, scales.shape)
    return Quantized(
        codes.name,
        codes.file,
        str(layout),
        shape,
        codes.offset,
        layout=layout,
        codes=codes,
        scales=scales,
        biases=biases[0] if biases else None,
    )


def _expect(stored: Stored, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if stored.dtype not in dtypes or stored.shape != shape:
        raise ValueError(
            f"tensor {stored.name!r}: expected {' or '.join(dtypes)} {shape} by config.json, "
            f"found {stored.dtype} {stored.shape}"
        )


def _holder(made: Quantized, rounding: bool) -> type[Block] | None:
    """The smallest block type that keeps the codes; None if none does.

    rounding: whether it may round scales and biases to float16
    Raises ValueError for scales that are not finite.
    """
    if made.layout.mode == "mxfp4":
        return MXFP4
    fitting, exact, largest = set(HOLDERS[made.layout.bits]), True, 0.0
    for scales, biases in _groups(made):
        if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
            raise ValueError(f"tensor {made.name!r}: a scale or a bias is not finite")
        largest = max(largest, float(np.abs(scales).max()), float(np.abs(biases).max()))
        symmetric = _is_half(scales)
        exact = exact and symmetric and _is_half(biases)
        for block in fitting & set(repack.MIDDLE):
            if not symmetric or not np.array_equal(biases, -repack.MIDDLE[block] * scales):
                fitting = fitting - {block}
    if not exact and (not rounding or largest > HALF_MAX):
        fitting &= set(repack.MIDDLE)
    return next((block for block in HOLDERS[made.layout.bits] if block in fitting), None)


def _is_half(x: np.ndarray) -> bool:
    """Whether float16 holds all of x, float32."""
    with np.errstate(over="ignore"):
        return np.array_equal(x, x.astype(np.float16).astype(np.float32))


def _groups(made: Quantized) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scales and biases in pieces."""
    assert made.scales is not None and made.biases is not None
    step = max(1, CHUNK // max(1, math.prod(made.scales.shape[1:])))
    for start in range(0, made.rows, step):
        stop = min(start + step, made.rows)
        yield made.scales.read(start, stop), made.biases.read(start, stop)
