"""Hugging Face folders to GGUF files: reads what is there, and plans every key and tensor before one is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mlx_ferrum.blocks import Block, by_name

from . import architecture, checkpoint, general, mlx_checkpoint, recipes, repack, vocabulary
from .architecture import Architecture, Converted
from .losses import Errors, squares
from .output import Planned, Value

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Plan:
    """What a GGUF file will hold. errors: of weights that were quantized before, counted while they are written."""

    metadata: dict[str, Value]
    tensors: list[Planned]
    errors: Errors


def plan(
    folder: Path, recipe: str | None, *, name: str | None = None, pre: str | None = None
) -> Plan:
    """Read the configuration, the tokenizer and the headers of a folder; the weights are read when they are written.

    recipe: a key of `recipes.RECIPES`, or None to keep the types that are there; name: of the model, by default the
        folder's; pre: the pre-tokenizer
    Raises ValueError for what is missing or damaged, NotImplementedError for what is not supported.
    """
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
    blocks = _blocks(tensors, recipe, _facts(model, tensors))
    w.add_file_type(recipes.RECIPES[recipe or _usual(tensors, blocks)].file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add(w, folder, model, pre)
    values = {k: Value(v.value, v.type, v.sub_type) for k, v in w.kv_data[0].items()}
    made = Plan(values, [], errors)
    for t in tensors:
        data = partial(encode, t, blocks[t.name])
        if t.source not in checkpoint.DTYPES:
            data = partial(data, errors=errors)
        made.tensors.append(Planned(t.name, blocks[t.name], t.shape, t.source, data))
    return made


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
    tensors: Sequence[Converted], recipe: str | None, facts: recipes.ModelFacts
) -> dict[str, type[Block]]:
    """The type of each tensor: that which holds its codes, where it is quantized, else by the recipe.

    Vectors and routers, which recipes leave alone, are F32. Without a recipe floats keep their type, and what no block
    holds becomes Q8_0.
    """
    given = [recipes.TensorFacts(tensor.name, tensor.shape, "F32") for tensor in tensors]
    found = recipes.choose(given, recipe or "q8_0", facts)
    for tensor, fact in zip(tensors, given, strict=True):
        if tensor.packed is not None:
            found[tensor.name] = tensor.packed
        elif recipe is None and tensor.source in FLOATS and recipes.may_quantize(fact):
            found[tensor.name] = by_name(tensor.source)
    return found


def _usual(tensors: Sequence[Converted], blocks: Mapping[str, type[Block]]) -> str:
    """The recipe that is named after the type of most weights."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[blocks[tensor.name].name.lower()] += math.prod(tensor.shape)
    known = {"mxfp4": "mxfp4_moe"}
    return next(known.get(name, name) for name, _ in counts.most_common())


def encode(tensor: Converted, block: type[Block], errors: Errors | None = None) -> np.ndarray:
    """The bytes of a tensor, (..., row bytes) uint8. One part of it at a time is there as float32.

    errors: counts what is lost of weights that were quantized before
    Raises ValueError, which names the tensor, for weights that the type cannot hold.
    """
    out = np.empty((*tensor.shape[:-1], block.row_bytes(tensor.shape[-1])), np.uint8)
    rows = out.reshape(-1, out.shape[-1])
    start = 0
    for part in tensor.parts:
        x = part()
        count = math.prod(x.shape[:-1])
        x = x.reshape(count, -1)
        if tensor.packed is not None:
            rows[start : start + count] = x
        else:
            rows[start : start + count] = _quantized(tensor, block, x)
            if errors is not None and tensor.source not in checkpoint.DTYPES:
                back = repack.decoded(block, rows[start : start + count])
                sums = squares(back - x), squares(x)
                errors.add(tensor.name, tensor.source, block.name, sums)
        start += count
    return out


def _quantized(tensor: Converted, block: type[Block], x: np.ndarray) -> np.ndarray:
    try:
        return block.quantize(x)
    except ValueError as error:
        raise ValueError(f"tensor {tensor.name!r}: {error}") from None
