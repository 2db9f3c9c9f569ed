"""Texts to embeddings, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..models.bert import Model
from ..tokenizer import Tokenizer

BATCH = 32  # texts in a forward pass


def embed(
    model: object, tokenizer: Tokenizer, texts: Sequence[str], normalize: bool = True
) -> np.ndarray:
    """Embeddings of texts: (n,) strings -> (n, d) float32, in the order of the texts.

    normalize: scale each row to length 1
    Raises ValueError for a model that makes no embeddings, for texts that are not a sequence of strings, and for a
    text that is empty or longer than the model's context.
    """
    if not isinstance(model, Model):
        raise ValueError("the model makes no embeddings, expected one of architecture bert")
    if isinstance(texts, (str, bytes)):
        raise ValueError("texts: one string found, expected a sequence of strings")
    ids = [tokenizer.encode(text) for text in texts]
    for i, row in enumerate(ids):
        if not 1 <= len(row) <= model.args.context_length:
            raise ValueError(
                f"texts[{i}]: {len(row)} tokens, expected 1 to {model.args.context_length}"
            )
    out = np.zeros((len(ids), model.args.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        out[batch] = np.asarray(_forward(model, [ids[i] for i in batch]))
    if normalize:
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return out


def _forward(model: Model, rows: list[list[int]]) -> mx.array:
    """rows: (b, ragged) ids, shortest first -> (b, d)"""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), int(lengths.max())), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return model(mx.array(tokens), lengths)
