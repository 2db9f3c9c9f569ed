"""Small folders as mlx_lm writes them: those of hf_folders, with matrices that MLX has quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hf_folders
import mlx.core as mx
import numpy as np

LAYOUT = {"group_size": 32, "bits": 4, "mode": "affine"}
ROUTERS = ("mlp.gate", "block_sparse_moe.gate", "shared_expert_gate")


def stacked(made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a Hugging Face folder by their names in mlx_lm, where experts are stacks."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    found: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, x in made.items():
        before, experts, rest = name.partition(".experts.")
        if not experts:
            found[name] = x
            continue
        number, part, _ = rest.split(".")
        stack = stacks.setdefault(f"{before}.switch_mlp.{names.get(part, part)}.weight", {})
        stack[int(number)] = x
    return found | {name: np.stack([s[n] for n in sorted(s)]) for name, s in stacks.items()}


def write(
    folder: Path,
    kind: str,
    layout: Mapping[str, Any] = LAYOUT,
    dtype: mx.Dtype = mx.bfloat16,
    changes: Mapping[str, Any] | None = None,
    **others: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Write a folder; returns the weights that it holds, float32, by their names in mlx_lm.

    layout: of matrices; changes: of config.json; others: of modules whose names end so, with __ for a point
    """
    usual: dict[str, Any] = {"num_hidden_layers": 6} if kind == "gemma3" else {}
    made = stacked(hf_folders.write(folder, kind, **(usual if changes is None else changes)))
    own = {name.replace("__", "."): dict(given) for name, given in others.items()}
    quantization: dict[str, Any] = dict(layout)
    arrays: dict[str, mx.array] = {}
    held: dict[str, np.ndarray] = {}
    for name, x in made.items():
        module = name.rpartition(".")[0]
        if x.ndim < 2 or module.endswith(ROUTERS):
            arrays[name] = mx.array(x).astype(dtype)
            held[name] = np.array(arrays[name].astype(mx.float32))
            continue
        used = next((given for end, given in own.items() if module.endswith(end)), layout)
        if used != layout:
            quantization[module] = used
        w, scales, *biases = mx.quantize(mx.array(x).astype(dtype), **used)
        parts = {"weight": w, "scales": scales} | ({"biases": biases[0]} if biases else {})
        arrays |= {f"{module}.{part}": array for part, array in parts.items()}
        held[name] = decoded(w, scales, biases[0] if biases else None, used)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    change(folder, quantization=quantization, quantization_config=quantization)
    return held


def decoded(
    w: mx.array, scales: mx.array, biases: mx.array | None, layout: Mapping[str, Any]
) -> np.ndarray:
    """float32, by MLX; in its own arithmetic it would be rounded to the type of the scales"""
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    own = {k: layout[k] for k in LAYOUT}
    return np.array(mx.dequantize(w, scales, biases, **own).astype(mx.float32))


def change(folder: Path, **entries: Any) -> None:
    """Change config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def weights(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a folder by MLX's own reader and decoder, float32."""
    usual = json.loads((folder / "config.json").read_text()).get("quantization", {})
    arrays: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays |= mx.load(str(file))  # type: ignore[arg-type]
    found = {}
    for name, x in arrays.items():
        module, _, part = name.rpartition(".")
        if part in ("scales", "biases"):
            continue
        if f"{module}.scales" in arrays and part == "weight":
            parts = arrays[f"{module}.scales"], arrays.get(f"{module}.biases")
            found[name] = decoded(x, *parts, usual.get(module, usual))
            continue
        found[name] = np.array(x.astype(mx.float32))
    return found
