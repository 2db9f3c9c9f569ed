"""GGUF models as folders that mlx_lm loads: what becomes of each tensor, and config.json.

Blocks that are groups of an affine quantization keep their codes. Other types are decoded and quantized again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mlx_ferrum import gguf
from mlx_ferrum.blocks import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q6_K,
    Block,
    by_name,
)
from mlx_ferrum.models.base import BaseArgs
from mlx_ferrum.models.weights import without_ones
from mlx_ferrum.notice import warn

from . import affine, mlx_config, recipes, repack
from .affine import Layout
from .architecture import Architecture
from .folder import Array, Module
from .losses import Errors, squares
from .modules import Change

# Two bits more than the type has: the error added is small beside the one that is there.
REQUANTIZED: dict[type[Block], int] = {Q2_K: 4, Q3_K: 5, IQ4_NL: 6, IQ4_XS: 6, Q6_K: 8}
FLOATS: dict[type[Block], str] = {F16: "float16", BF16: "bfloat16", F32: "float32"}
CHUNK = 1 << 21  # weights that are converted at a time
FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Options:
    """bits, group: of matrices that are quantized, None for what suits each; dtype: a key of affine.FLOATS, or None."""

    bits: int | None = None
    group: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Plan:
    """config: config.json without tokens; dtype: of scales and vectors; errors: filled while modules are written."""

    config: dict[str, Any]
    modules: list[Module]
    dtype: str
    errors: Errors


def plan(model: gguf.GGUF, options: Options) -> Plan:
    """What becomes of each tensor of `model`.

    Raises ValueError for tensors that are missing, unknown or of a wrong shape, NotImplementedError for what mlx_lm
    does not have.
    """
    args = mlx_config.read(model.metadata)
    config, converter = mlx_config.make(args, model.metadata, model.tensors, _factors(model, args))
    found = _Tensors(model, converter, options, _used(model, args))
    modules = found.modules(config)
    config["torch_dtype"] = found.dtype
    if quantization := _quantization(found.layouts):
        config["quantization"] = quantization
    return Plan(config, modules, found.dtype, found.errors)


def _used(model: gguf.GGUF, args: BaseArgs) -> list[str]:
    """The names of the tensors but those of layers that predict further tokens, where mlx_lm has none."""
    past = [name for name in model.tensors if recipes.layer(name) >= args.num_layers]
    if not args.skips_predictors or not past:
        return list(model.tensors)
    warn(f"tensors are left out: {len(past)} of multi-token prediction")
    return [name for name in model.tensors if name not in set(past)]


def _factors(model: gguf.GGUF, args: BaseArgs) -> np.ndarray | None:
    info = model.tensors.get(FACTORS)
    if info is None:
        return None
    if info.type != "F32" or info.shape != (args.rope.dims // 2,):
        raise ValueError(
            f"tensor {FACTORS!r}: expected F32 ({args.rope.dims // 2},), found {info.type} {info.shape}"
        )
    return model.data(FACTORS).view(np.float32)


def _quantization(layouts: Mapping[str, Layout]) -> dict[str, Any]:
    """The entry of config.json: the most frequent layout, and those of modules that differ."""
    counts = Counter(layouts.values())
    if not counts:
        return {}
    usual = counts.most_common(1)[0][0]
    others = {name: x.parameters for name, x in layouts.items() if x != usual}
    return {**usual.parameters, **others}


class _Tensors:
    """The tensors of a model by modules. used: names of tensors; layouts: of each module that is quantized."""

    def __init__(
        self, model: gguf.GGUF, converter: Architecture, options: Options, used: list[str]
    ) -> None:
        self.model, self.converter, self.options, self.used = model, converter, options, used
        self.names, self.arrays = mlx_config.modules(converter), mlx_config.arrays(converter)
        self.shapes = converter.shapes()
        self.errors = Errors()
        self.layouts: dict[str, Layout] = {}
        self.dtype = options.dtype or self._dtype()

    def modules(self, config: dict[str, Any]) -> list[Module]:
        """Modules in the order of the file; sets the options of config.json that say which have biases."""
        self._check()
        found = [self._module(name) for name in self.used if name != FACTORS]
        if "lm_head" in self.names.values() and "output.weight" not in self.model.tensors:
            found.append(self._module("token_embd.weight", "lm_head"))
        return found + self._missing_biases(config)

    def _dtype(self) -> str:
        """The type of most matrices if all are floats, otherwise float32, in which mlx_lm then computes too."""
        sizes: Counter[type[Block]] = Counter()
        for info in self.model.tensors.values():
            if len(info.shape) > 1 and "ffn_gate_inp" not in info.name:
                sizes[by_name(info.type)] += info.nbytes
        usual = sizes.most_common(1)[0][0] if sizes else F32
        kept = set(sizes) <= set(FLOATS) and (usual is not F16 or self.converter.halves)
        return FLOATS[usual] if kept and self.options.bits is None else "float32"

    def _check(self) -> None:
        """Raises ValueError unless every tensor is known, and every module that the model needs is there."""
        known = {FACTORS, *self.arrays}
        for name in self.names:
            known |= {f"{name}.weight", f"{name}.bias"}
        unknown = [name for name in self.used if name not in known]
        if unknown:
            raise ValueError(f"tensor {unknown[0]!r}: this architecture does not have it")
        needed = [*self.arrays, *(f"{name}.weight" for name in self.names if name != "output")]
        missing = [name for name in needed if name not in self.model.tensors]
        if missing:
            raise ValueError(f"tensor {missing[0]!r} is missing")

    def _module(self, name: str, module: str = "") -> Module:
        """A tensor of the file as arrays; module: its name in mlx_lm, by default that of its own module."""
        info, shape = self.model.tensors[name], self._shape(name)
        stem, _, suffix = name.rpartition(".")
        module = self.arrays.get(name) or f"{module or self.names[stem]}.{suffix}"
        try:
            block = by_name(info.type)
        except NotImplementedError as error:
            raise NotImplementedError(f"tensor {name!r}: {error}") from None
        layout = self._layout(name, block, shape)
        change = self.converter.mlx_change(name)
        matrix = _Matrix(self.model, info, block, shape, change, self.errors)
        if layout is None:
            dtype = "float32" if name.endswith("ssm_a") else self.dtype  # it is exponentiated
            stored = self.converter.mlx_shape(name, shape)
            array = Array(module, affine.FLOATS[dtype][0], stored)
            data = partial(matrix.floats, dtype)
            return Module(module, shape, info.type, dtype, (array,), data)
        module = module.removesuffix(".weight")
        self.layouts[module] = layout
        arrays = _arrays(module, shape, layout, self.dtype)
        data = partial(matrix.codes, layout, self.dtype)
        return Module(module, shape, info.type, str(layout), arrays, data)

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape in config.json's terms. Raises ValueError if the file's is another one."""
        expected = self.shapes.get(name)
        found = self.model.tensors[name].shape
        if expected is None:
            raise ValueError(f"tensor {name!r}: this architecture does not have it")
        if without_ones(expected) != without_ones(found):
            raise ValueError(f"tensor {name!r}: expected shape {expected}, found {found}")
        return expected

    def _layout(self, name: str, block: type[Block], shape: tuple[int, ...]) -> Layout | None:
        """How a tensor is quantized, None where it becomes floats."""
        bits, k = self.options.bits, shape[-1]
        own = 4 if block is MXFP4 else repack.BITS.get(block)
        if own is not None and (bits is None or own <= bits):
            return Layout(own, repack.GROUP, "mxfp4" if block is MXFP4 else "affine")
        facts = recipes.TensorFacts(name, shape, block.name)
        if len(shape) < 2 or (bits is None and block in FLOATS) or not recipes.may_quantize(facts):
            return None
        widest = self.options.group or (64 if bits else repack.GROUP)
        group = next((g for g in reversed(affine.GROUPS) if g <= widest and k % g == 0), None)
        return None if group is None else Layout(bits or REQUANTIZED[block], group)

    def _missing_biases(self, config: dict[str, Any]) -> list[Module]:
        """Zeros for modules that have biases in mlx_lm and none in the file.

        Raises NotImplementedError for biases that mlx_lm does not have.
        """
        back = {module: name for name, module in self.names.items()}
        there = {module for module, name in back.items() if f"{name}.bias" in self.model.tensors}
        made = []
        for option, names in self.converter.biases.items():
            wanted = [m for m in back if any(m.endswith(f".{name}") for name in names)]
            if option:
                config[option] = bool(there & set(wanted))
            if not option or config[option]:
                made += [self._zeros(m, back[m]) for m in wanted if m not in there]
                there -= set(wanted)
        if there:
            name = back[min(there)]
            raise NotImplementedError(f"tensor '{name}.bias': mlx_lm's model has no such bias")
        return made

    def _zeros(self, module: str, name: str) -> Module:
        shape = self.shapes[f"{name}.bias"]
        array = Array(f"{module}.bias", affine.FLOATS[self.dtype][0], shape)
        zeros = np.zeros(array.nbytes, np.uint8)
        return Module(array.name, shape, "-", self.dtype, (array,), lambda: iter([zeros]))


def _arrays(module: str, shape: tuple[int, ...], layout: Layout, dtype: str) -> tuple[Array, ...]:
    rows, k = shape[:-1], shape[-1]
    weight = Array(f"{module}.weight", "U32", (*rows, layout.words(k)))
    groups = (*rows, k // layout.group)
    if layout.mode == "mxfp4":
        return weight, Array(f"{module}.scales", "U8", groups)
    name = affine.FLOATS[dtype][0]
    return weight, Array(f"{module}.scales", name, groups), Array(f"{module}.biases", name, groups)


@dataclass(frozen=True)
class _Matrix:
    """A tensor of a GGUF file, read in runs of rows. shape: (..., rows, k)"""

    model: gguf.GGUF
    info: gguf.TensorInfo
    block: type[Block]
    shape: tuple[int, ...]
    change: Change | None
    errors: Errors

    @property
    def is_moved(self) -> bool:
        """Whether the change applies to rows of blocks, so that it is undone before they are decoded."""
        return self.change is not None and self.change.keeps(self.block)

    def raw(self) -> Iterator[np.ndarray]:
        """Runs of rows (n, row bytes) uint8, at most CHUNK weights, in the order of the checkpoint."""
        k = self.shape[-1]
        data = self.model.data(self.info.name).reshape(-1, self.block.row_bytes(k))
        if self.change is not None and self.is_moved:
            data = self.change.back(self._heads(data))
        data, step = data.reshape(-1, self.block.row_bytes(k)), max(1, CHUNK // k)
        for start in range(0, len(data), step):
            yield data[start : start + step]

    def _heads(self, data: np.ndarray) -> np.ndarray:
        """Rows that change places: of a matrix, or the numbers of a vector."""
        return data if len(self.shape) > 1 else data.reshape(self.shape[0], -1)

    def decoded(self, raw: np.ndarray) -> np.ndarray:
        """raw: (n, row bytes) -> (n, k) float32"""
        x = repack.decoded(self.block, raw)
        return x if self.change is None or self.is_moved else self.change.back(x)

    def floats(self, dtype: str) -> Iterator[np.ndarray]:
        """The bytes of an array of floats."""
        for raw in self.raw():
            x = self.decoded(raw)
            found = self._stored(x, dtype)
            self._note(dtype, x, affine.loaded(found, dtype))
            yield found.view(np.uint8)

    def codes(self, layout: Layout, dtype: str) -> Iterator[np.ndarray]:
        """The bytes of codes, scales and biases."""
        if layout.mode == "mxfp4":
            yield from self._mxfp4()
            return
        scales, biases = [], []
        keeps = repack.BITS.get(self.block) == layout.bits and layout.group == repack.GROUP
        keeps = keeps and (self.change is None or self.is_moved)
        for raw in self.raw():
            x = None if keeps else self.decoded(raw)
            made = repack.rows(self.block, raw) if x is None else affine.quantize(x, layout)
            scales.append(self._stored(made.scales, dtype))
            biases.append(self._stored(made.biases, dtype))
            yield affine.pack(made.codes, layout.bits)
            back = affine.loaded(scales[-1], dtype), affine.loaded(biases[-1], dtype)
            if x is not None or not all(map(np.array_equal, back, (made.scales, made.biases))):
                x = made.weights if x is None else x
                self._note(str(layout), x, affine.Rows(made.codes, *back).weights)
        yield from (part.view(np.uint8) for part in (*scales, *biases))

    def _note(self, becomes: str, x: np.ndarray, found: np.ndarray) -> None:
        self.errors.add(self.info.name, self.info.type, becomes, (squares(found - x), squares(x)))

    def _mxfp4(self) -> Iterator[np.ndarray]:
        exponents = []
        for raw in self.raw():
            codes, scales = repack.mxfp4_rows(raw)
            exponents.append(scales)
            yield affine.pack(codes, 4)
        yield from exponents

    def _stored(self, x: np.ndarray, dtype: str) -> np.ndarray:
        try:
            return affine.stored(x, dtype)
        except ValueError as error:
            raise ValueError(f"tensor {self.info.name!r}: {error}") from None
