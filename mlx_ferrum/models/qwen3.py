"""Qwen 3, dense: Llama with half-split rotary pairs and an RMS norm on every query and key head."""

from __future__ import annotations

from . import llama
from .base import BaseArgs


class ModelArgs(BaseArgs):
    """Nothing beyond the common sizes."""


class Attention(llama.Attention):
    """As Llama's, with head norms."""

    interleaved = False
    head_norms = True


class DecoderLayer(llama.DecoderLayer):
    """x: (b, l, hidden) -> (b, l, hidden)"""

    attention = Attention


class Model(llama.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = DecoderLayer
