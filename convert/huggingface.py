"""Hugging Face folders to GGUF files: reads what is there, and plans every key and tensor before one is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gguf
import numpy as np

from mlx_ferrum.blocks import Block

from . import architecture, checkpoint, general, recipes, vocabulary
from .architecture import Architecture, Converted
from .output import Planned, Value


@dataclass(frozen=True)
class Plan:
    """What a GGUF file will hold."""

    metadata: dict[str, Value]
    tensors: list[Planned]


def plan(folder: Path, recipe: str, *, name: str | None = None, pre: str | None = None) -> Plan:
    """Read the configuration, the tokenizer and the headers of a folder; the weights are read when they are written.

    recipe: a key of `recipes.RECIPES`; name: of the model, by default the folder's; pre: the pre-tokenizer
    Raises ValueError for what is missing or damaged, NotImplementedError for what is not supported.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json found, expected a Hugging Face folder")
    config = vocabulary.read_json(folder / "config.json")
    model = architecture.find(config)
    stored = checkpoint.read(folder, config.get("quantization_config") or {})
    tensors = model.tensors(stored)
    w = gguf.GGUFWriter(None, model.name)
    general.add(w, folder, name or folder.resolve().name, tensors)
    model.add(w)
    model.add_folder(w, folder)
    w.add_file_type(recipes.RECIPES[recipe].file_type)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary.add(w, folder, model, pre)
    values = {k: Value(v.value, v.type, v.sub_type) for k, v in w.kv_data[0].items()}
    return Plan(values, _planned(tensors, recipe, _facts(model, tensors)))


def _facts(model: Architecture, tensors: Sequence[Converted]) -> recipes.ModelFacts:
    tied = all(tensor.name != "output.weight" for tensor in tensors)
    return recipes.ModelFacts(
        model.name, model.layers, model.experts, model.heads, model.kv_heads, tied
    )


def _planned(tensors: Sequence[Converted], recipe: str, facts: recipes.ModelFacts) -> list[Planned]:
    """Tensors with their types. Vectors and routers, which recipes leave alone, are F32."""
    given = [recipes.TensorFacts(tensor.name, tensor.shape, "F32") for tensor in tensors]
    blocks = recipes.choose(given, recipe, facts)
    return [
        Planned(t.name, blocks[t.name], t.shape, t.source, partial(encode, t, blocks[t.name]))
        for t in tensors
    ]


def encode(tensor: Converted, block: type[Block]) -> np.ndarray:
    """The bytes of a tensor, (..., row bytes) uint8. One part of it at a time is there as float32.

    Raises ValueError, which names the tensor, for weights that the type cannot hold.
    """
    out = np.empty((*tensor.shape[:-1], block.row_bytes(tensor.shape[-1])), np.uint8)
    rows = out.reshape(-1, out.shape[-1])
    start = 0
    for part in tensor.parts:
        x = part()
        count = math.prod(x.shape[:-1])
        try:
            rows[start : start + count] = block.quantize(x.reshape(count, -1))
        except ValueError as error:
            raise ValueError(f"tensor {tensor.name!r}: {error}") from None
        start += count
    return out
