"""How many launches a layer costs the metal backend for one token, those of MLX's own operations included.

Attention is one for all sequences; over long contexts it takes a second one. Nothing moves keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
import random_models
from backends import REFERENCE
from launches import counting
from metal_call import kernel, launch

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.nn import GatedMLP
from mlx_ferrum.state.kinds import Recurrent

# Products with their norm, append, attention, o_proj with the residual; where attention has a gate, one more.
ATTENTION, GATE = 4, 1
# Products with their norm, the convolution, the delta rule, the norm with its gate, the product with the residual.
RECURRENT = 5
DENSE = 2
# The norm goes with the router's product; then the router, two for the chosen experts, four for one that all get.
EXPERTS, SHARED = 4, 4
RECURRENT_KERNELS = ("short_conv", "gated_delta", "gated_norm")
ATTENTION_KERNELS = ("append_16", "attend_16")
MORE = {"gemma3": 2}  # which has norms after both parts


@pytest.fixture(autouse=True)
def metal() -> Iterator[None]:
    """The metal backend, in use."""
    with REFERENCE.in_use(), counting():
        ops.use_backend("metal")
        yield


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("name", random_models.CASES)
def test_layers(name: str, sequences: int, tmp_path: Any) -> None:
    path = random_models.write_case(tmp_path / "m.gguf", name, seed=1)
    with REFERENCE.in_use():  # no numbers come out of counted launches
        model, _ = mlx_ferrum.load(path)
    cache = model.make_cache()
    for length in (20, 1):
        mx.eval(model(mx.zeros((sequences, length), mx.int32), cache))
    x = mx.zeros((sequences, model.args.hidden_size))
    mx.eval(x)
    batch = cache.batch(mx.zeros((sequences, 1), mx.int32))
    for i, layer in enumerate(model.body.layers):
        with counting() as seen:
            seen.settle([layer(x, batch.layer(i))])
        recurrent = isinstance(layer.keeps, Recurrent)
        kernels = RECURRENT_KERNELS if recurrent else ATTENTION_KERNELS
        assert [seen.names.count(name) for name in kernels] == [1] * len(kernels)
        most = RECURRENT if recurrent else ATTENTION + GATE * layer.self_attn.gated
        dense = isinstance(layer.mlp, GatedMLP)
        most += DENSE if dense else EXPERTS + SHARED * ("shared" in layer.mlp)
        assert len(seen.names) <= most + MORE.get(model.args.architecture, 0), seen.names


def update(x: mx.array, at: Any, held: list[mx.array]) -> mx.array:
    """x, 16 positions, in a cache to which `held` gets another reference."""
    stored = mx.zeros((2, 1, 1, 8, 4))
    mx.eval(stored)
    held.append(stored[:1])
    mx.eval(held)
    new = x.reshape(2, 1, 1, 4, 4)
    if isinstance(at, mx.array):
        return mx.slice_update(stored, new, at.reshape(1), axes=[3])
    stored[..., at : at + 4, :] = new
    return stored


UNEVEN: dict[
    str, tuple[Any, int]
] = {  # what is done before a launch, and how many launches that costs
    "nothing": (lambda x: x, 0),
    "views": (lambda x: x[:2].reshape(2, 1, 8)[:, :, None], 0),
    "a turn of one position": (lambda x: x[:1].swapaxes(0, 1).reshape(8), 0),
    "a cast": (lambda x: x.astype(mx.float16), 1),
    "a cast to what it is": (lambda x: x.astype(mx.float32), 0),
    "a reshape that copies": (lambda x: x.T.reshape(-1), 1),
    "a turn, which the launch copies": (lambda x: x.T, 1),
    "a sum": (lambda x: x + x, 1),
    "an update": (lambda x: update(x, 3, []), 1),
    "an update at an array": (lambda x: update(x, mx.array(3), []), 2),
    "an update of what another holds": (lambda x: update(x, 3, HELD), 2),
}
HELD: list[mx.array] = []


@pytest.mark.parametrize("name", UNEVEN)
def test_what_is_counted(name: str) -> None:
    before, count = UNEVEN[name]
    x: Any = mx.zeros((4, 8))
    mx.eval(x)
    with counting() as seen:
        launch(kernel("y[0] = 1;", 1, 1), [before(x)], [((1,), mx.float32)], grid=1)
    assert len(seen.names) == count + 1, seen.names
