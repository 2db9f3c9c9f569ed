"""Writes recipes.json: the types that llama-quantize gives to the tensors of small models, real and random.

    PYTHONPATH=tests python tests/golden/make_recipes.py path/to/llama-quantize

Needs gguf-py and llama.cpp. Only names and shapes matter, so the random files are written in F16.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import hf_hybrid
import numpy as np
import random_models
from random_models import QKV_BIASES, Sizes

from mlx_ferrum import catalog
from mlx_ferrum.convert import model_facts, recipes
from mlx_ferrum.convert.command import main as convert
from mlx_ferrum.gguf import read

FOLDER = Path(__file__).parent
LINE = re.compile(
    r"\[ *\d+/ *\d+\] (\S+) +- \[[^\]]*\], type = +(\w+), size = +\S+ MiB(?: -> +\S+ MiB \((\w+)\))?"
)
RANDOM: dict[str, dict[str, Any]] = {
    name: random_models.CASES[name]
    for name in ("qwen2", "qwen3", "gemma3", "qwen3moe", "qwen3moe-60-dense", "qwen2moe", "mixtral")
}
RANDOM |= {
    "llama-20-layers": {"arch": "llama", "sizes": Sizes(layers=20)},
    "llama-24-grouped": {
        "arch": "llama",
        "sizes": Sizes(layers=24, heads=8, kv_heads=1, head_dim=32),
    },
    "llama-rows-of-288": {
        "arch": "llama",
        "sizes": Sizes(hidden=288, ffn=576, layers=17, heads=9, kv_heads=3, head_dim=32),
    },
    "llama-rows-of-80": {
        "arch": "llama",
        "sizes": Sizes(hidden=80, ffn=100, heads=4, head_dim=20, layers=9),
    },
    "llama-70b": {"arch": "llama", "sizes": Sizes(layers=80, ffn=256)},
    "qwen2-72b": {
        "arch": "qwen2",
        "biases": QKV_BIASES,
        "sizes": Sizes(layers=80, ffn=256, kv_heads=4),
    },
    "qwen3moe-18-dense": {
        "arch": "qwen3moe",
        "sizes": Sizes(layers=18, experts=8, used=2, expert_ffn=256, dense_layers=(0, 1)),
    },
    "qwen3moe-17": {
        "arch": "qwen3moe",
        "sizes": Sizes(layers=17, experts=6, used=2, expert_ffn=64),
    },
}
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 256,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
}
HYBRID: dict[str, dict[str, Any]] = {  # by cases of hf_hybrid.py
    "qwen3next": {"num_hidden_layers": 9, "num_experts": 6, "num_attention_heads": 8, **WIDE},
    "qwen35": {"num_hidden_layers": 20, "num_attention_heads": 8, **WIDE},
    "qwen35moe": {"num_hidden_layers": 8, "num_experts": 8, "layer_types": None, **WIDE},
}
OVERRIDES = (
    "q4_k_m --tensor-type attn_v=q5_0 --tensor-type attn=q8_0",
    "q4_k_m --tensor-type blk.1.ffn_down=q2_k --token-embedding-type q3_k",
    "q3_k_m --output-tensor-type q5_k",
    "q4_0 --output-tensor-type q4_1 --token-embedding-type q5_1",
)
WITH_IMATRIX = ("q4_0", "q5_0", "iq4_nl", "iq4_xs", "q4_k_m")


def types(tool: str, path: Path, command: str, *options: str) -> dict[str, str]:
    """What llama-quantize would make of each tensor. command: a recipe, then options."""
    recipe, *more = command.split()
    run = subprocess.run(
        [tool, "--dry-run", *more, *options, str(path), recipe],
        capture_output=True,
        text=True,
        check=True,
    )
    found = LINE.findall(run.stdout + run.stderr)
    return {name: (new or old).upper() for name, old, new in found}


def write_imatrix(path: Path) -> Path:
    """A file with importance for one tensor, so that llama-quantize knows that there is some."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    writer.add_tensor("none.weight.in_sum2", np.ones((1, 32), np.float32))
    writer.add_tensor("none.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def case(tool: str, path: Path, imatrix: Path) -> dict[str, Any]:
    """The tensors of a file, layers folded, and a letter for the type of each."""
    file = read(path)
    facts = model_facts.read(file.metadata, list(file.tensors))
    letters: dict[str, str] = {}
    chosen: dict[str, dict[str, str]] = {}
    # with these options it names types that the rows do not fit, and would fail after the dry run
    fits = file.tensors["token_embd.weight"].shape[-1] % 256 == 0
    for command in (*recipes.RECIPES, *(OVERRIDES if fits else ())):
        chosen[command] = types(tool, path, command)
    for recipe in WITH_IMATRIX:
        chosen[f"{recipe} --imatrix"] = types(tool, path, recipe, "--imatrix", str(imatrix))
    for found in chosen.values():
        assert set(found) == set(file.tensors), path
        for name in found.values():
            letters.setdefault(name, "abcdefghijklmnopqrstuvwxyz"[len(letters)])
    return {
        "facts": facts._asdict(),
        "tensors": folded([(i.name, i.shape, i.type) for i in file.tensors.values()]),
        "letters": {letter: name for name, letter in letters.items()},
        "types": {
            command: "".join(letters[found[name]] for name in file.tensors)
            for command, found in chosen.items()
        },
    }


def folded(tensors: list[tuple[str, tuple[int, ...], str]]) -> list[list[Any]]:
    """[name without its layer, shape, type, [[layer, place], ...]] for tensors that differ in the layer only."""
    found: dict[tuple[str, tuple[int, ...], str], list[list[int]]] = {}
    for place, (name, shape, kind) in enumerate(tensors):
        layer = recipes.layer(name)
        key = (re.sub(r"^blk\.\d+\.", "blk.%d.", name), shape, kind)
        found.setdefault(key, []).append([layer, place])
    return [[name, shape, kind, places] for (name, shape, kind), places in found.items()]


def main() -> None:
    """Write recipes.json."""
    tool = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        imatrix = write_imatrix(folder / "imatrix.gguf")
        paths = {name: catalog.resolve(name) for name in catalog.names()}
        for name, arguments in RANDOM.items():
            paths[name] = folder / f"{name}.gguf"
            random_models.write(paths[name], seed=1, **{**arguments, "types": ("F16",)})
        for name, changes in HYBRID.items():
            hf_hybrid.write(folder / name, name, **changes)
            paths[name] = folder / f"{name}.gguf"
            assert convert(["hf", str(folder / name), str(paths[name]), "--type", "f16"]) == 0
        cases = {name: case(tool, path, imatrix) for name, path in paths.items()}
    lines = [f'"{name}": {json.dumps(case, separators=(",", ":"))}' for name, case in cases.items()]
    (FOLDER / "recipes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
