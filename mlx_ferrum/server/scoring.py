"""Log-probabilities of a prompt's own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import log_softmax

from .loop import Likely, Work, likely

ROWS = 64  # of a part: others wait for it


def scores(model: LanguageModel, prompt: Sequence[int], top: int) -> Work[list[Likely | None]]:
    """For each token its log-probability after those before it, and the `top` likeliest ones; None for the first."""
    cache = model.make_cache()
    found: list[Likely | None] = [None]
    for start in range(0, len(prompt) - 1, ROWS):
        tokens = prompt[start : min(start + ROWS, len(prompt) - 1)]
        logits = mx.array(model(mx.array([tokens]), cache))
        rows = np.asarray(log_softmax(logits))[0]
        following = prompt[start + 1 :]
        found += [likely(row, token, top) for row, token in zip(rows, following, strict=False)]
        yield
    return found
