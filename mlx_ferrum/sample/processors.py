"""Processors change logits before log-probabilities are taken: penalties and biases.

A *processor* maps the tokens so far (n,) and logits (…, vocab) to logits (…, vocab). It gets MLX's arrays; those of
this package (`Own`) get NumPy's where the backend has those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from .arrays import Array
from .checks import check_integer, check_number

Processor = Callable[[mx.array, mx.array], mx.array]
LARGEST_ID = 2**31 - 1  # of a token: they are 32-bit numbers in GGUF


class Own:
    """A processor that takes NumPy's arrays too. It changes NumPy's logits in place, and returns them."""

    def __init__(self, apply: Callable[[Array, Array], Array]) -> None:
        self._apply = apply

    def __call__(self, tokens: Array, logits: Array) -> Array:
        return self._apply(tokens, logits)


def make_processors(
    *,
    logit_bias: Mapping[int, float] | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    penalty_window: int | None = 64,
) -> list[Processor]:
    """The processors that are switched on; the defaults switch all of them off.

    Raises:
        ValueError: an argument is out of its range.
    """
    processors: list[Processor] = []
    if logit_bias:
        processors.append(bias(logit_bias))
    if (repetition_penalty, presence_penalty, frequency_penalty) != (1.0, 0.0, 0.0):
        processors.append(
            penalties(repetition_penalty, presence_penalty, frequency_penalty, penalty_window)
        )
    return processors


def bias(values: Mapping[int, float]) -> Processor:
    """Add `values[id]` to the logit of token `id`; -inf bans the token.

    Raises:
        ValueError: not a mapping of token ids to numbers.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"logit_bias is {values!r}, expected a mapping of token ids to numbers")
    for token, value in values.items():
        check_integer("a key of logit_bias", token, 0, LARGEST_ID)
        if value != -math.inf:
            check_number(f"logit_bias of token {token}", value)
    largest = max(values)
    ids = mx.array(list(values.keys()))
    added = mx.array(list(values.values()), mx.float32)

    here, add = np.array(list(values.keys())), np.array(list(values.values()), np.float32)

    def apply(_: Array, logits: Array) -> Array:
        if largest >= logits.shape[-1]:
            raise ValueError(
                f"logit_bias names token {largest}, the vocabulary has {logits.shape[-1]}"
            )
        if isinstance(logits, np.ndarray):
            logits[..., here] += add
            return logits
        return logits.at[..., ids].add(added)

    return Own(apply)


def penalties(
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    window: int | None = 64,
) -> Processor:
    """Make tokens less likely that occur among the last `window`, prompt included.

    A window of None is all tokens, one of 0 none.

    A token that occurs c > 0 times has its logit divided by `repetition` where positive, else
    multiplied (arXiv:1909.05858), and then `presence + c * frequency` subtracted (the OpenAI API's
    definition). Negative `presence` and `frequency` make repetition more likely.
    """
    check_number("repetition_penalty", repetition)
    if repetition <= 0:
        raise ValueError(f"repetition_penalty is {repetition}, expected a number above 0")
    check_number("presence_penalty", presence)
    check_number("frequency_penalty", frequency)
    if window is not None:
        check_integer("penalty_window", window, 0)

    def apply(tokens: Array, logits: Array) -> Array:
        if window is not None:
            tokens = tokens[max(0, tokens.size - window) :]
        if isinstance(logits, np.ndarray):
            return _penalized(tokens, logits, repetition, presence, frequency)
        counts = mx.zeros(logits.shape[-1:]).at[tokens].add(1)  # (vocab,)
        scaled = mx.where(logits > 0, logits / repetition, logits * repetition)
        return mx.where(counts > 0, scaled - (presence + frequency * counts), logits)

    return Own(apply)


def _penalized(
    tokens: Array, logits: np.ndarray, repetition: float, presence: float, frequency: float
) -> np.ndarray:
    """Only the logits of tokens that occur are computed."""
    ids, counts = np.unique(np.asarray(tokens), return_counts=True)
    found = logits[..., ids]
    scaled = np.where(found > 0, found / repetition, found * repetition)
    logits[..., ids] = scaled - (presence + frequency * counts)
    return logits
