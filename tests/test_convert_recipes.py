"""Recipes against the types that llama-quantize gives, kept in golden/recipes.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_ferrum.blocks import Q4_K, by_name
from mlx_ferrum.convert import model_facts
from mlx_ferrum.convert.recipes import (
    RECIPES,
    ModelFacts,
    Overrides,
    TensorFacts,
    choose,
    may_quantize,
)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text())
FACTS = ModelFacts("llama", 4, 0, 4, 2, tied=False)


def tensors(case: dict[str, Any]) -> list[TensorFacts]:
    """The tensors of a case in the order of its file."""
    found: dict[int, TensorFacts] = {}
    for name, shape, kind, places in case["tensors"]:
        for layer, place in places:
            whole = name % layer if "%d" in name else name
            found[place] = TensorFacts(whole, tuple(shape), kind)
    return [found[place] for place in range(len(found))]


def options(command: str) -> tuple[str, Overrides, bool]:
    """What a command line of llama-quantize asks for: recipe, overrides, whether importance is known."""
    recipe, *words = command.split()
    imatrix = "--imatrix" in words
    words = [word for word in words if word != "--imatrix"]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    patterns = [value.split("=") for option, value in pairs if option == "--tensor-type"]
    named = {option: by_name(value.upper()) for option, value in pairs if "=" not in value}
    return (
        recipe,
        Overrides(
            [(re.compile(pattern), by_name(name.upper())) for pattern, name in patterns],
            named.get("--output-tensor-type"),
            named.get("--token-embedding-type"),
        ),
        imatrix,
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_types_are_those_of_llama_quantize(name: str) -> None:
    case = GOLDEN[name]
    facts, given = ModelFacts(**case["facts"]), tensors(case)
    assert set(RECIPES) <= set(case["types"])
    for command, letters in case["types"].items():
        recipe, overrides, imatrix = options(command)
        found = choose(given, recipe, facts, imatrix=imatrix, overrides=overrides)
        expected = [case["letters"][letter] for letter in letters]
        assert [block.name for block in found.values()] == expected, command
        assert list(found) == [tensor.name for tensor in given]


def test_the_order_of_tensors_does_not_matter() -> None:
    case = GOLDEN["llama-20-layers"]
    facts, given = ModelFacts(**case["facts"]), tensors(case)
    shuffled = [given[i] for i in np.random.default_rng(1).permutation(len(given))]
    assert choose(shuffled, "q4_k_m", facts) == choose(given, "q4_k_m", facts)


def test_an_unknown_recipe_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"recipe: expected one of q2_k, .*found 'q4'"):
        choose([], "q4", FACTS)


def test_an_expert_without_a_layer_is_an_error() -> None:
    stray = TensorFacts("ffn_down_exps.weight", (8, 256, 256), "F16")
    with pytest.raises(ValueError, match="expected a layer from 0 to 3, found -1"):
        choose([stray], "q4_k_m", FACTS._replace(experts=8))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_up.weight", (64, 256), True),
        ("blk.0.ffn_up.bias", (64, 256), False),
        ("blk.0.attn_norm.weight", (256,), False),
        ("blk.0.some_norm.weight", (4, 256), False),
        ("blk.0.ffn_gate_inp.weight", (8, 256), False),
        ("blk.0.ffn_gate_inp_shexp.weight", (1, 256), False),
        ("position_embd.weight", (512, 256), False),
        ("v.position_embd.weight", (512, 256), False),
        ("blk.0.ssm_conv1d.weight", (512, 4), False),
        ("blk.0.ffn_up_exps.weight", (8, 1, 256), True),
    ],
)
def test_matrices_of_weights_are_quantized(
    name: str, shape: tuple[int, ...], expected: bool
) -> None:
    assert may_quantize(TensorFacts(name, shape, "F16")) is expected


def test_facts_of_metadata() -> None:
    metadata = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": 7,
        "qwen3moe.expert_count": 8,
        "qwen3moe.attention.head_count": np.array([6, 4], np.int32),
    }
    facts = model_facts.read(metadata, ["token_embd.weight"])
    assert facts == ModelFacts("qwen3moe", 7, 8, 6, 6, tied=True)
    del metadata["qwen3moe.block_count"]
    with pytest.raises(ValueError, match=r"'qwen3moe\.block_count': expected a number, found noth"):
        model_facts.read(metadata, [])
    with pytest.raises(ValueError, match=r"general\.architecture.*expected text, found nothing"):
        model_facts.read({}, [])


def test_a_float_recipe_takes_overrides_too() -> None:
    tensor = TensorFacts("blk.0.ffn_up.weight", (64, 256), "F32")
    overrides = Overrides([(re.compile("ffn"), Q4_K)])
    assert choose([tensor], "f16", FACTS, overrides=overrides) == {tensor.name: Q4_K}
