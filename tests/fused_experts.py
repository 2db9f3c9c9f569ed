"""Files whose experts have gate and up in one stack, ffn_gate_up_exps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mlx_ferrum import gguf
from mlx_ferrum.convert import output, source
from mlx_ferrum.convert.output import Planned

GATE, UP, BOTH = "ffn_gate_exps", "ffn_up_exps", "ffn_gate_up_exps"


def fused(given: str | Path, out: Path) -> Path:
    """Write a model with the stacks of gate and up, of one type, joined: (e, rows, k) twice -> (e, 2 rows, k)."""
    model = source.read(given)
    output.write(out, source.metadata(model), list(_tensors(model)))
    return out


def _tensors(model: gguf.GGUF) -> Iterator[Planned]:
    for name, info in model.tensors.items():
        plain = source.copied(model, info)
        if GATE in name:
            up = model.tensors[name.replace(GATE, UP)]
            assert (info.type, info.shape) == (up.type, up.shape)
            count, rows, k = info.shape
            yield replace(
                plain,
                name=name.replace(GATE, BOTH),
                shape=(count, 2 * rows, k),
                data=partial(_joined, model, name, count),
            )
        elif UP not in name:
            yield plain


def _joined(model: gguf.GGUF, name: str, count: int) -> np.ndarray:
    parts = [model.data(n).reshape(count, -1) for n in (name, name.replace(GATE, UP))]
    return np.concatenate(parts, axis=1).reshape(-1)
