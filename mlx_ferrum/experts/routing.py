"""The decisions of a model's routers for each token of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.models.expert_layers import with_experts
from mlx_ferrum.nn import Observer

from .choices import observers


@dataclass(frozen=True, repr=False)
class Routes:
    """The decisions of one layer's router, token by token.

    layer: its number, dense layers counted
    logits: (tokens, experts) float32, as the router gave them
    ids: (tokens, used) int32, the experts that each token got, the best first
    weights: (tokens, used) float32, what their outputs were multiplied by
    """

    layer: int
    logits: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    def __repr__(self) -> str:
        (tokens, used), experts = self.ids.shape, self.logits.shape[1]
        return f"Routes(layer {self.layer}, {tokens} tokens, {used} of {experts} experts)"

    @property
    def probabilities(self) -> np.ndarray:
        """(tokens, experts) float32: the softmax of the logits."""
        shifted = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        found: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
        return found

    @property
    def entropy(self) -> np.ndarray:
        """(tokens,) bits: 0 where the router is sure of one expert, log2(experts) where it finds all of them equal."""
        p = self.probabilities
        logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
        found: np.ndarray = -(p * logs).sum(axis=-1)
        return found


def routes(model: LanguageModel, tokens: Sequence[int]) -> list[Routes]:
    """Run `model` over token ids (n,) in one pass; a `Routes` for each layer that has experts.

    Raises ValueError if there is no such layer or tokens are no sequence of integers, and as the model does when it
    is called.
    """
    layers = with_experts(model)
    ids = np.array(tokens)
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"tokens are {ids.dtype} {ids.shape}, expected integers (length,)")
    said: list[list[np.ndarray]] = [[] for _ in layers]
    with observers(layers, [_noting(parts) for parts in said]):
        mx.eval(model(mx.array(ids[None])))
    return [Routes(i, *parts) for (i, _), parts in zip(layers, said, strict=True)]


def _noting(parts: list[np.ndarray]) -> Observer:
    """An observer that keeps logits, ids and weights of a batch of one text."""

    def note(logits: ops.Array, ids: ops.Array, weights: ops.Array) -> None:
        found = ops.to_mlx(logits), ids, ops.to_mlx(weights)
        parts.extend(map(np.array, found))

    return note
