"""Qwen3-Next and Qwen3-Coder-Next: delta nets between attention layers, experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..architecture import Converted
from ..checkpoint import Stored
from ..hybrid import Hybrid
from ..pieces import picked
from . import qwen2moe

_MIXED = "linear_attn.in_proj_qkvz.weight"


class Converter(Hybrid, qwen2moe.Converter):
    """Queries, keys, values and z, which the checkpoint has together for each key head, are told apart."""

    name = "qwen3next"
    written_as = None
    tiled = False
    sections = None
    normed = True
    defaults = {**Hybrid.defaults, "norm_topk_prob": True}

    def decays(self) -> dict[str, tuple[int, ...]]:
        return {"ssm_ba.weight": (2 * self.value_heads, self.hidden)}

    def tensors(self, checkpoint: Mapping[str, Stored]) -> list[Converted]:
        apart: dict[str, Stored] = {}
        for name, stored in checkpoint.items():
            apart |= self._apart(name, stored) if name.endswith(_MIXED) else {name: stored}
        return super().tensors(apart)

    def _apart(self, name: str, stored: Stored) -> dict[str, Stored]:
        """Two tensors: queries, keys and values of all heads, and z. Raises ValueError for a wrong number of rows."""
        s, values = self.state, self.value_heads // self.key_heads * self.state
        each = 2 * s + 2 * values
        shape = (self.key_heads * each, self.hidden)
        if stored.shape != shape:
            raise ValueError(
                f"tensor {name!r}: expected shape {shape} by config.json, found {stored.shape}"
            )
        rows = np.arange(self.key_heads * each).reshape(self.key_heads, each)
        q, k, v, z = np.split(rows, [s, 2 * s, 2 * s + values], axis=1)
        qkv = np.concatenate([q.reshape(-1), k.reshape(-1), v.reshape(-1)])
        stem = name.removesuffix("in_proj_qkvz.weight")
        return {
            f"{stem}in_proj_qkv.weight": picked(stored, qkv.tolist()),
            f"{stem}in_proj_z.weight": picked(stored, z.reshape(-1).tolist()),
        }
