"""Qwen 3 with experts (30B-A3B, 235B-A22B): attention as in `qwen3`; weights of the chosen experts add up to 1."""

from __future__ import annotations

from typing import Any

from . import llama, qwen3
from .base import BaseArgs, Metadata
from .experts import expert_args, expert_size


class ModelArgs(BaseArgs):
    """The common sizes, with experts."""

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        return super().fields(m) | {
            "experts": expert_args(m, size=expert_size(m), normalise=True),
        }


class Model(llama.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = qwen3.DecoderLayer
