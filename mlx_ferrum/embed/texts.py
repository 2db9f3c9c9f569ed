"""Texts to embeddings, in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..models.base import LoadedModel
from ..models.encoder import Encoder
from ..notice import warn
from ..tokenizer import Tokenizer

BATCH = 32  # texts in a forward pass


def embed(
    model: LoadedModel,
    tokenizer: Tokenizer,
    texts: Sequence[str] | np.ndarray,
    *,
    normalize: bool | None = None,
) -> np.ndarray:
    """Embeddings of texts: (n,) strings -> (n, d) float32, in the order of the texts.

    normalize: scale rows to length 1, so that their dot products are cosines; None: as the file says, else yes
    A text may be empty. One that is longer than the model's longest is truncated at its end, and a warning says so.
    Special tokens written in a text, such as [SEP], are those tokens, as in sentence-transformers.
    Raises ValueError for texts that are not a sequence of strings and for results that are not finite,
    NotImplementedError for a model that is no encoder.
    """
    if not isinstance(model, Encoder):
        raise NotImplementedError("a language model makes no embeddings, expected an encoder")
    ids = _tokens(tokenizer, texts, model.pooling.max_length)
    out = np.zeros((len(ids), model.size), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        out[batch] = np.asarray(_forward(model, [ids[i] for i in batch]))
    wrong = np.flatnonzero(~np.isfinite(out).all(1))
    if wrong.size:
        raise ValueError(f"the embedding of texts[{wrong[0]}] is not finite: weights are damaged")
    if model.pooling.normalize if normalize is None else normalize:
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
    return out


def _tokens(
    tokenizer: Tokenizer, texts: Sequence[str] | np.ndarray, longest: int
) -> list[list[int]]:
    """The ids of each text, `longest` at most; those that the tokenizer puts around a text stay."""
    if not _is_list(texts):
        raise ValueError(f"texts: {type(texts).__name__} found, expected a sequence of strings")
    after = tokenizer.encode("")[len(tokenizer.prefix_ids) :]
    found, long = [], []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}]: {type(text).__name__} found, expected a string")
        ids = tokenizer.encode(text, parse_special=True)
        if not ids:
            raise ValueError(f"texts[{i}] has no tokens, expected at least one")
        if len(ids) > longest:
            long.append((i, len(ids)))
            ids = [*ids[: max(0, longest - len(after))], *after]
        found.append(ids)
    if long:
        first, count = long[0]
        warn(
            f"{len(long)} of {len(found)} texts have more than {longest} tokens and were truncated, "
            f"first texts[{first}] with {count}"
        )
    return found


def _is_list(texts: Any) -> bool:
    if isinstance(texts, np.ndarray):
        return texts.ndim > 0
    return isinstance(texts, Sequence) and not isinstance(texts, str | bytes)


def _forward(model: Encoder, rows: list[list[int]]) -> mx.array:
    """rows: (b, ragged) ids -> (b, d)"""
    lengths = [len(row) for row in rows]
    tokens = np.zeros((len(rows), max(lengths)), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return model(mx.array(tokens), lengths)
