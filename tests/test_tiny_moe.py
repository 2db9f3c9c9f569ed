"""What the mixture of the package has learnt, and whether it uses its experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from backends import Backend
from divergence import log_softmax

import mlx_ferrum
from mlx_ferrum.experts.choices import observe

RUTH = (  # of what was held out
    "And Ruth said, Intreat me not to leave thee, or to return from following after thee: for whither thou goest, I "
    "will go; and where thou lodgest, I will lodge: thy people shall be my people, and thy God my God:"
)


@pytest.fixture(scope="module")
def tiny_moe() -> tuple[Any, Any]:
    return mlx_ferrum.load("tiny-moe")


def test_it_has_learnt(reference: Backend, tiny_moe: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_moe
    tokens = tokenizer.encode(RUTH)
    log_probs = log_softmax(np.array(model(mx.array(tokens[:-1])[None])[0]))
    bits = -np.take_along_axis(log_probs, np.array(tokens[1:])[:, None], -1).sum() / np.log(2)
    assert bits / len(RUTH) < 1.6  # a byte; 1.4 over all that was held out


def test_every_expert_is_chosen(reference: Backend, tiny_moe: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_moe
    with observe(model) as layers:
        mx.eval(model(mx.array(tokenizer.encode(RUTH))[None]))
    assert len(layers) == 4
    for layer in layers:
        assert layer.tokens > 40 and layer.effective > 5  # of 8
