"""Recipes: which type each tensor of a model gets, by name, shape and layer. The same types that llama.cpp chooses.

A recipe has one type for most tensors, and more bits where errors cost most: values of attention, the way back
down from the feed-forward layer, the first and last layers. Three architectures for which llama.cpp has rules of
their own (falcon, glm5-next, bailingmoe3) are treated as all others here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mlx_ferrum.blocks import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    Block,
    by_name,
)


class TensorFacts(NamedTuple):
    """shape: in NumPy's order, the row length last; type: ggml's name of what it is stored in, such as "BF16"."""

    name: str
    shape: tuple[int, ...]
    type: str


class ModelFacts(NamedTuple):
    """layers: block_count; experts: 0 without; heads, kv_heads: of the first layer; tied: no output.weight."""

    architecture: str
    layers: int
    experts: int
    heads: int
    kv_heads: int
    tied: bool


class Place(NamedTuple):
    """Where a tensor stands: number `i` of the `n` tensors with its role, in the order of layers."""

    i: int
    n: int
    facts: ModelFacts
    imatrix: bool


Condition = Callable[[Place], bool]
Rows = tuple[tuple[Condition, type[Block]], ...]


def always(_: Place) -> bool:
    """For every tensor with the role."""
    return True


def first(count: int) -> Condition:
    """The first `count` of the tensors."""
    return lambda place: place.i < count


def first_part(divisor: int) -> Condition:
    """The first 1/divisor of the tensors, rounded down."""
    return lambda place: place.i < place.n // divisor


def outer_or_third(place: Place) -> bool:
    """The first and the last eighth, and every third between them."""
    eighth = place.n // 8
    return place.i < eighth or place.i >= 7 * place.n // 8 or (place.i - eighth) % 3 == 2


def grouped(place: Place) -> bool:
    """At least four heads share a value, so that its matrix is small."""
    return place.facts.kv_heads > 0 and place.facts.heads // place.facts.kv_heads >= 4


def eight_experts(place: Place) -> bool:
    """The model has eight experts, as Mixtral does: its attention is small beside them."""
    return place.facts.experts == 8


def first_eighth_with_imatrix(place: Place) -> bool:
    """The first eighth, where importance is known."""
    return place.imatrix and first_part(8)(place)


def first_eighth_without_imatrix(place: Place) -> bool:
    """The first eighth, where importance is not known."""
    return not place.imatrix and first_part(8)(place)


@dataclass(frozen=True)
class Recipe:
    """base: the type of tensors that no row applies to. Of the rows of a role, the first one that applies counts.

    file_type: the number that general.file_type gets
    quantized: whether the output matrix and models of eight experts get more bits
    stack: the type of stacks of matrices, such as experts
    """

    base: type[Block]
    file_type: int
    attn_v: Rows = ()
    attn_output: Rows = ()
    ffn_down: Rows = ()
    quantized: bool = True
    stack: type[Block] | None = None


def _iq4(base: type[Block], file_type: int) -> Recipe:
    return Recipe(
        base,
        file_type,
        attn_v=((grouped, Q5_K),),
        attn_output=((eight_experts, Q5_K),),
        ffn_down=((first_eighth_without_imatrix, Q5_K),),
    )


RECIPES: dict[str, Recipe] = {
    "q2_k": Recipe(
        Q2_K,
        10,
        attn_v=((grouped, Q4_K), (always, Q3_K)),
        attn_output=((eight_experts, Q5_K), (always, Q3_K)),
        ffn_down=((always, Q3_K),),
    ),
    "q3_k_s": Recipe(Q3_K, 11, attn_output=((eight_experts, Q5_K),)),
    "q3_k_m": Recipe(
        Q3_K,
        12,
        attn_v=((first(2), Q5_K), (always, Q4_K)),
        attn_output=((eight_experts, Q5_K), (always, Q4_K)),
        ffn_down=((first_part(16), Q5_K), (always, Q4_K)),
    ),
    "q3_k_l": Recipe(
        Q3_K,
        13,
        attn_v=((always, Q5_K),),
        attn_output=((eight_experts, Q3_K), (always, Q5_K)),
        ffn_down=((always, Q5_K),),
    ),
    "q4_0": Recipe(Q4_0, 2, ffn_down=((first_eighth_with_imatrix, Q4_1),)),
    "q4_1": Recipe(Q4_1, 3),
    "q4_k_s": Recipe(
        Q4_K,
        14,
        attn_v=((first(4), Q5_K),),
        attn_output=((eight_experts, Q5_K),),
        ffn_down=((first_part(8), Q5_K),),
    ),
    "q4_k_m": Recipe(
        Q4_K,
        15,
        attn_v=((outer_or_third, Q6_K),),
        attn_output=((eight_experts, Q5_K),),
        ffn_down=((outer_or_third, Q6_K),),
    ),
    "q5_0": Recipe(Q5_0, 8, ffn_down=((first_eighth_with_imatrix, Q5_1),)),
    "q5_1": Recipe(Q5_1, 9),
    "q5_k_s": Recipe(Q5_K, 16),
    "q5_k_m": Recipe(
        Q5_K, 17, attn_v=((outer_or_third, Q6_K),), ffn_down=((outer_or_third, Q6_K),)
    ),
    "q6_k": Recipe(Q6_K, 18),
    "q8_0": Recipe(Q8_0, 7),
    "iq4_nl": _iq4(IQ4_NL, 25),
    "iq4_xs": _iq4(IQ4_XS, 30),
    "mxfp4_moe": Recipe(Q8_0, 38, stack=MXFP4),
    "f16": Recipe(F16, 1, quantized=False),
    "bf16": Recipe(BF16, 32, quantized=False),
    "f32": Recipe(F32, 0, quantized=False),
}
# Rows that a type's blocks do not divide get the next type of 32 weights a block, or F16.
FALLBACK = {IQ4_XS: IQ4_NL, Q2_K: Q4_0, Q3_K: Q4_0, Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0}
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
ROLES = {  # what a name contains
    "attn_qkv.weight": "attn_v",
    "attn_kv_b.weight": "attn_v",
    "attn_v.weight": "attn_v",
    "attn_k.weight": "attn_k",
    "attn_output.weight": "attn_output",
    "ffn_down": "ffn_down",
}
# Llama 2 70B and its kin: (architecture, layers). Their values serve many heads, so more bits cost little.
SEVENTY_BILLION = {("llama", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}
# Small, or sensitive, or no matrices that are multiplied: such tensors stay as they are.
_KEPT = re.compile(
    r"""_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj
    |^position_embd\.weight$|^token_types\.weight$|ssm_conv1d|shortconv\.conv\.weight
    |indexer\.[kq]_proj\.weight|time_mix_(first|[wva][012]|g[12]|decay_w[12]|lerp_fused)\.weight
    |attn_rel_b\.weight|\.position_embd|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)
    |a\.rvq\.codebook|mm\.a\.code_embd""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Overrides:
    """What the user wants otherwise than the recipe.

    patterns: regular expressions, searched in names; the first one that is found gives the type
    output: of output.weight, or of the embeddings that stand in for it
    embedding: of the token embeddings
    """

    patterns: Sequence[tuple[re.Pattern[str], type[Block]]] = ()
    output: type[Block] | None = None
    embedding: type[Block] | None = None


def may_quantize(tensor: TensorFacts) -> bool:
    """Whether recipes choose a type for it: a matrix of weights, or a stack, that is worth it."""
    matrix = any(n > 1 for n in tensor.shape[:-1])
    return matrix and tensor.name.endswith("weight") and _KEPT.search(tensor.name) is None


def choose(
    tensors: Sequence[TensorFacts],
    recipe: str,
    facts: ModelFacts,
    *,
    imatrix: bool = False,
    overrides: Overrides = Overrides(),
) -> dict[str, type[Block]]:
    """The type of each tensor by name; those that stay as they are keep the type that they have.

    recipe: a key of RECIPES; imatrix: whether importance is known
    Raises ValueError for an unknown recipe, or where a layer cannot be told from the name of an expert's tensor.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, found {recipe!r}")
    chooser = _Chooser(RECIPES[recipe], facts, imatrix, overrides)
    chooser.values = sum(role(tensor.name) == "attn_v" for tensor in tensors)
    ordered = sorted(tensors, key=lambda tensor: (layer(tensor.name), tensor.name.encode()))
    chosen = {tensor.name: chooser.choose(tensor) for tensor in ordered}
    return {tensor.name: chosen[tensor.name] for tensor in tensors}


def asked(
    tensors: Sequence[TensorFacts], facts: ModelFacts, overrides: Overrides
) -> dict[str, type[Block]]:
    """The types of the tensors for which the user names one."""
    chooser = _Chooser(RECIPES["f16"], facts, False, overrides)
    wanted = {t.name: (chooser.wanted(t), t.shape[-1]) for t in tensors if may_quantize(t)}
    return {name: fitting(block, k) for name, (block, k) in wanted.items() if block is not None}


def not_fitting(
    tensors: Sequence[TensorFacts], facts: ModelFacts, overrides: Overrides
) -> list[str]:
    """A line for each type that the user names for tensors whose rows its blocks do not divide."""
    chooser = _Chooser(RECIPES["f16"], facts, False, overrides)
    found: dict[str, list[str]] = {}
    for t in tensors:
        wanted, k = chooser.wanted(t) if may_quantize(t) else None, t.shape[-1]
        if wanted is not None and (given := fitting(wanted, k)) is not wanted:
            line = f"{wanted.name} has blocks that do not divide rows of {k}; {given.name} for "
            found.setdefault(line, []).append(t.name)
    return [
        line + names[0] + (f" and {len(names) - 1} more" if names[1:] else "")
        for line, names in found.items()
    ]


def named_after(block: type[Block]) -> str:
    """The recipe whose main type is `block`, the middle one of several; "f16" if there is none."""
    found = [name for name, recipe in RECIPES.items() if recipe.base is block]
    return next((name for name in found if name.endswith("_m")), (*found, "f16")[0])


def role(name: str) -> str | None:
    """What a tensor does, if its type depends on that."""
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "embedding"
    return next((role for part, role in ROLES.items() if part in name), None)


def layer(name: str) -> int:
    """The number of its layer, -1 for a tensor outside the layers."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def fitting(block: type[Block], k: int) -> type[Block]:
    """`block`, or what takes its place for rows of k weights."""
    if k % block.weights == 0:
        return block
    instead = FALLBACK.get(block, block)
    return instead if k % instead.weights == 0 else F16


@dataclass
class _Chooser:
    """Chooses for one tensor after the other, in the order of layers; counts those of each role."""

    recipe: Recipe
    facts: ModelFacts
    imatrix: bool
    overrides: Overrides
    values: int = 0  # tensors with the role attn_v
    seen: dict[str, int] = field(default_factory=dict)

    def choose(self, tensor: TensorFacts) -> type[Block]:
        if not may_quantize(tensor):
            return by_name(tensor.type)
        wanted = self.wanted(tensor)
        if wanted is None:
            wanted = self._by_recipe(tensor) if self.recipe.quantized else self.recipe.base
        return fitting(wanted, tensor.shape[-1])

    def wanted(self, tensor: TensorFacts) -> type[Block] | None:
        """The type that the user asks for."""
        which, ask = role(tensor.name), self.overrides
        named = next(
            (block for pattern, block in ask.patterns if pattern.search(tensor.name)), None
        )
        if which == "embedding" and ask.embedding is not None:
            is_main = tensor.name == EMBEDDINGS[0]
            return ask.embedding if is_main or named is None else named
        if which == "output" and ask.output is not None:
            return ask.output
        if named is None and which == "embedding" and self.facts.tied:
            return ask.output
        return named

    def _by_recipe(self, tensor: TensorFacts) -> type[Block]:
        which, base = role(tensor.name), self.recipe.base
        if which == "output" or (which == "embedding" and self.facts.tied):
            return Q8_0 if base is Q8_0 or tensor.shape[-1] % base.weights else Q6_K
        if self.recipe.stack is not None and len(tensor.shape) > 2 and tensor.shape[-3] > 1:
            return self.recipe.stack
        if which in ("attn_v", "attn_k", "attn_output", "ffn_down"):
            return self._by_role(which, self._place(which, tensor.name))
        return base

    def _place(self, which: str, name: str) -> Place:
        """Counts the tensor. Of experts the layer counts: there may be several tensors in each."""
        i, n = self.seen.get(which, 0), self.facts.layers
        self.seen[which] = i + 1
        if which == "attn_v":
            n = self.values
        elif which == "ffn_down" and self.facts.experts > 1:
            i = layer(name)
            if not 0 <= i < n:
                raise ValueError(f"tensor {name!r}: expected a layer from 0 to {n - 1}, found {i}")
        return Place(i, n, self.facts, self.imatrix)

    def _by_role(self, which: str, place: Place) -> type[Block]:
        if which in ("attn_v", "attn_k") and eight_experts(place):
            return Q8_0
        rows: Rows = () if which == "attn_k" else getattr(self.recipe, which)
        found = next((block for applies, block in rows if applies(place)), self.recipe.base)
        if which == "attn_v" and found in (Q3_K, Q4_K) and _is_70b(self.facts):
            return Q5_K
        return found


def _is_70b(facts: ModelFacts) -> bool:
    shares = facts.architecture != "llama" or facts.heads != facts.kv_heads
    return (facts.architecture, facts.layers) in SEVENTY_BILLION and shares
