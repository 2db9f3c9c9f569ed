"""Hugging Face folders to GGUF files: reads what is there, and plans every key and tensor before one is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_ferrum.blocks import Block, by_name

from . import (
    architecture,
    checkpoint,
    general,
    mlx_checkpoint,
    quantizing,
    recipes,
    repack,
    vocabulary,
)
from .architecture import Architecture, Converted
from .losses import Errors, squares
from .output import Planned, Value
from .quantizing import Options

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Plan:
    """What a GGUF file will hold.

    errors: of weights that were quantized before, counted while they are written
    notices: a line for each thing that the user should know
    """

    metadata: dict[str, Value]
    tensors: list[Planned]
    errors: Errors
    notices: list[str]


def plan(
    folder: Path, options: Options | None, *, name: str | None = None, pre: str | None = None
) -> Plan:
    """Read the configuration, the tokenizer and the headers of a folder; the weights are read when they are written.

    options: None keeps the types that are there; name: of the model, by default the folder's; pre: the pre-tokenizer
    Raises ValueError for what is missing or damaged, a pattern that no tensor has, or importance of the wrong size;
    NotImplementedError for what is not supported.
    """
    recipe = None if options is None else options.recipe
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json found, expected a Hugging Face folder")
    config = vocabulary.read_json(folder / "config.json")
    model = architecture.find(config)
    errors = Errors()
    tensors = model.tensors(_stored(folder, config, recipe, errors))
    w = gguf.GGUFWriter(None, model.name)
    general.add(w, folder, name or folder.resolve().name, tensors)
    model.add(w)
    model.add_folder(w, folder)
    blocks = _blocks(tensors, options, _facts(model, tensors))
    w.add_file_type(recipes.RECIPES[recipe or _usual(tensors, blocks)].file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add(w, folder, model, pre)
    values = {k: Value(v.value, v.type, v.sub_type) for k, v in w.kv_data[0].items()}
    made = _planned(tensors, blocks, options, Plan(values, [], errors, []))
    if options is not None:
        given = [recipes.TensorFacts(t.name, t.shape, "F32") for t in tensors]
        made.notices.extend(recipes.not_fitting(given, _facts(model, tensors), options.overrides))
    if options is not None and isinstance(config.get("quantization"), dict):
        made.notices.append(
            f"{_quantized_count(tensors)} tensors are quantized by MLX: their codes are kept where a block type "
            "holds the same weights; ferrum-convert mlx keeps more"
        )
    return made


def _quantized_count(tensors: Sequence[Converted]) -> int:
    return sum(t.source not in checkpoint.DTYPES for t in tensors)


def _planned(
    tensors: Sequence[Converted],
    blocks: Mapping[str, type[Block]],
    options: Options | None,
    made: Plan,
) -> Plan:
    """`made`, which has the metadata, with the tensors and what is to be said of their importance."""
    importance, plain = None if options is None else options.importance, []
    for t in tensors:
        block = blocks[t.name]
        how = _how(t, block, options, made.errors)
        if how.columns is None and block not in quantizing.FLOATS:
            plain.append(t.name)
        data = partial(encode, t, block, how)
        made.tensors.append(Planned(t.name, block, t.shape, t.source, data))
    if importance is not None:
        quantizing.check_importance(importance, blocks)
        made.metadata.update(quantizing.importance_metadata(importance))
        made.notices.extend(quantizing.importance_notices(importance, plain))
    return made


@dataclass(frozen=True)
class How:
    """How a tensor is quantized.

    columns: their importance, (matrices, k) float32; effort, threads: of Block.quantize
    errors: counts what is lost, if the weights were quantized before
    """

    columns: np.ndarray | None = None
    effort: str = "normal"
    threads: int | None = None
    errors: Errors | None = None


def _how(tensor: Converted, block: type[Block], options: Options | None, errors: Errors) -> How:
    counted = None if tensor.source in checkpoint.DTYPES else errors
    if options is None:
        return How(errors=counted)
    columns = None
    if options.importance is not None and block not in quantizing.FLOATS and not tensor.packed:
        columns = options.importance.of(tensor.name, tensor.shape)
    return How(columns, options.effort, options.threads, counted)


def _stored(
    folder: Path, config: Mapping[str, Any], recipe: str | None, errors: Errors
) -> dict[str, checkpoint.Stored]:
    """The tensors of the folder; those that MLX has quantized are one each.

    They keep their codes where a block type holds the same weights, or, without a recipe, nearly the same. A recipe of
    floats decodes all.
    """
    stored = checkpoint.read(folder, config.get("quantization_config") or {})
    quantization = config.get("quantization")
    if quantization is None:
        return stored
    if not isinstance(quantization, dict):
        raise ValueError(f"config.json: quantization: expected an object, found {quantization!r}")
    return mlx_checkpoint.quantized(
        stored,
        quantization,
        errors,
        repacked=recipe is None or recipe.upper() not in FLOATS,
        rounding=recipe is None,
    )


def _facts(model: Architecture, tensors: Sequence[Converted]) -> recipes.ModelFacts:
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return recipes.ModelFacts(
        model.name, model.layers, model.experts, model.heads, model.kv_heads, tied
    )


def _blocks(
    tensors: Sequence[Converted], options: Options | None, facts: recipes.ModelFacts
) -> dict[str, type[Block]]:
    """The type of each tensor: that which holds its codes, where it is quantized, else by the recipe.

    Vectors and routers, which recipes leave alone, are F32. Without a recipe floats keep their type, and what no block
    holds becomes Q8_0.
    """
    given = [recipes.TensorFacts(tensor.name, tensor.shape, "F32") for tensor in tensors]
    wanted = options or Options("q8_0")
    quantizing.check_patterns(wanted.overrides, given)
    imatrix = wanted.importance is not None
    found = recipes.choose(given, wanted.recipe, facts, imatrix=imatrix, overrides=wanted.overrides)
    for tensor, fact in zip(tensors, given, strict=True):
        if tensor.packed is not None:
            found[tensor.name] = tensor.packed
        elif options is None and tensor.source in FLOATS and recipes.may_quantize(fact):
            found[tensor.name] = by_name(tensor.source)
    return found


def _usual(tensors: Sequence[Converted], blocks: Mapping[str, type[Block]]) -> str:
    """The recipe that is named after the type of most weights."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[blocks[tensor.name].name.lower()] += math.prod(tensor.shape)
    known = {"mxfp4": "mxfp4_moe"}
    return next(known.get(name, name) for name, _ in counts.most_common())


def encode(tensor: Converted, block: type[Block], how: How) -> np.ndarray:
    """The bytes of a tensor, (..., row bytes) uint8. One part of it at a time is there as float32.

    Raises ValueError, which names the tensor, for weights that the type cannot hold.
    """
    out = np.empty((*tensor.shape[:-1], block.row_bytes(tensor.shape[-1])), np.uint8)
    rows = out.reshape(-1, out.shape[-1])
    start = 0
    for part in tensor.parts:
        x = part()
        x = x.reshape(math.prod(x.shape[:-1]), -1)
        into = rows[start : start + len(x)]
        if tensor.packed is not None:
            into[:] = x
        else:
            _quantize(tensor, block, how, x, into, start)
            if how.errors is not None:
                sums = squares(repack.decoded(block, into) - x), squares(x)
                how.errors.add(tensor.name, tensor.source, block.name, sums)
        start += len(x)
    return out


def _quantize(
    tensor: Converted, block: type[Block], how: How, x: np.ndarray, into: np.ndarray, start: int
) -> None:
    """x: (rows, k) -> into: (rows, row bytes). start: the tensor's row that x begins with, which tells the matrix."""
    for matrix, some in _matrices(tensor, how, start, len(x)):
        columns = None if how.columns is None else how.columns[matrix]
        try:
            into[some] = block.quantize(x[some], columns, how.effort, threads=how.threads)
        except ValueError as error:
            raise ValueError(f"tensor {tensor.name!r}: {error}") from None


def _matrices(tensor: Converted, how: How, start: int, count: int) -> Iterator[tuple[int, slice]]:
    """`count` rows from row `start` of the tensor on, by their matrices if each has an importance of its own."""
    if how.columns is None:
        yield 0, slice(0, count)
        return
    each, at = tensor.shape[-2], 0
    while at < count:
        matrix, row = divmod(start + at, each)
        stop = min(count, at + each - row)
        yield matrix, slice(at, stop)
        at = stop
