"""Recipes: which type each tensor of a model gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gguf

from mlx_ferrum.blocks import F16, Block, by_name


class TensorFacts(NamedTuple):
    """shape: in NumPy's order; type: ggml's name of what the tensor has if it is not quantized."""

    name: str
    shape: tuple[int, ...]
    type: str


class ModelFacts(NamedTuple):
    """layers: block_count; experts: 0 without; tied: no output.weight."""

    architecture: str
    layers: int
    experts: int
    heads: int
    kv_heads: int
    tied: bool


class Recipe(NamedTuple):
    """base: the type of all weights that are quantized; file_type: the number of general.file_type."""

    base: type[Block]
    file_type: int


def _recipe(name: str) -> Recipe:
    kind = "ALL_F32" if name == "f32" else f"MOSTLY_{name.upper()}"
    base = name.upper().removesuffix("_S").removesuffix("_M").removesuffix("_L")
    return Recipe(by_name(base), int(gguf.LlamaFileType[kind]))


RECIPES = {
    name: _recipe(name) for name in "f32 f16 bf16 q8_0 q4_0 q4_1 q4_k_s q4_k_m q5_k_s q6_k".split()
}
KEPT = ("_norm.weight", "ffn_gate_inp.weight")


def choose(
    tensors: Sequence[TensorFacts],
    recipe: str,
    facts: ModelFacts,  # noqa: ARG001 of use to recipes with more than one type
) -> dict[str, type[Block]]:
    """The type of each tensor by name. Raises ValueError for an unknown recipe."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, found {recipe!r}")
    return {tensor.name: _block(tensor, RECIPES[recipe].base) for tensor in tensors}


def _block(tensor: TensorFacts, base: type[Block]) -> type[Block]:
    matrix = any(n > 1 for n in tensor.shape[:-1]) and tensor.name.endswith("weight")
    if not matrix or tensor.name.endswith(KEPT):
        return by_name(tensor.type)
    return base if tensor.shape[-1] % base.weights == 0 else F16
