"""Qwen 2 and 2.5, and the DeepSeek-R1 distills of them: Llama with half-split rotary pairs and biases on q, k and v."""

from __future__ import annotations

from . import llama
from .base import BaseArgs


class ModelArgs(BaseArgs):
    """Nothing beyond the common sizes."""


class Attention(llama.Attention):
    """As Llama's; the biases come with the linears."""

    interleaved = False


class DecoderLayer(llama.DecoderLayer):
    """x: (b, l, hidden) -> (b, l, hidden)"""

    attention = Attention


class Model(llama.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = DecoderLayer
