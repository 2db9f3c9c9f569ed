"""Qwen 3.5 and 3.6 with experts (35B-A3B, 122B-A10B, 397B-A17B): layers as in `qwen35`, experts as in `qwen3next`."""

from __future__ import annotations

from . import hybrid, qwen3next


class ModelArgs(qwen3next.ModelArgs):
    """The sizes of hybrid models, with experts and a shared one."""


class Model(hybrid.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""
