"""Qwen 3.5 and 3.6, dense (0.8B to 27B): gated delta nets and gated attention.

The converter has put value heads in such an order that head i reads key head i % key_heads.
"""

from __future__ import annotations

from . import hybrid


class ModelArgs(hybrid.HybridArgs):
    """The sizes of hybrid models."""


class Model(hybrid.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""
