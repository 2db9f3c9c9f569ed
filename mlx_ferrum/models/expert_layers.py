"""The layers of a model that have experts."""

from __future__ import annotations

from ..nn import Experts
from .base import LanguageModel
from .encoder import Encoder


def with_experts(model: LanguageModel | Encoder) -> list[tuple[int, Experts]]:
    """The layers that have experts, with their numbers.

    Raises ValueError if there is none, NotImplementedError for an encoder.
    """
    if isinstance(model, Encoder):
        raise NotImplementedError("an encoder has no experts, expected a language model")
    layers = [(i, layer.mlp) for i, layer in enumerate(model.body.layers)]
    found = [(i, mlp) for i, mlp in layers if isinstance(mlp, Experts)]
    if not found:
        raise ValueError(f"the model has no experts: its architecture is {model.args.architecture}")
    return found
