"""Qwen 3 Next (80B-A3B, Coder-Next): gated delta nets and gated attention, experts and a shared one.

Value heads are grouped by key heads, as in the weights that the converter read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import hybrid
from .base import Metadata
from .experts import expert_args, expert_size


@dataclass(frozen=True)
class ModelArgs(hybrid.HybridArgs):
    """The sizes of hybrid models, with experts and a shared one where the file has experts."""

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        fields = super().fields(m)
        if not m.get("expert_count", int, 0):
            return fields
        dense = fields["intermediate_size"]
        shared = m.size("expert_shared_feed_forward_length", dense, zero=dense)
        experts = expert_args(m, size=expert_size(m), shared_size=shared, normalise=True)
        return fields | {"experts": experts}


class DecoderLayer(hybrid.DecoderLayer):
    """x: (n, hidden) -> (n, hidden)"""

    is_tiled = False


class Model(hybrid.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = DecoderLayer
