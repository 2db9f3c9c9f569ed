"""Angles of rotary embeddings far beyond pi, where only the precise sine and cosine have a bound on their error."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from backends import METAL
from pages import Layer

from mlx_ferrum import ops
from mlx_ferrum.state.kinds import KV


@pytest.mark.parametrize("interleaved", [True, False])
def test_turns_of_thousands_of_radians(interleaved):
    """One radian a position: no angle is rounded, so a turned unit vector is the cosine and the sine."""
    pairs, held, new = 4, 4099, 3
    with METAL.in_use():
        layer = Layer(METAL, KV(1, 2 * pairs, 3), 2)
        layer.begin(held)
        rows = layer.states.batch([(layer.texts[0], new)], np.arange(new))
        first, second = (0, 1) if interleaved else (0, pairs)
        q = np.zeros((new, 2, 2 * pairs), np.float32)
        q[..., first] = 1
        k, v = mx.array(q[:, :1]), mx.zeros((new, 1, 3))
        found = np.array(
            ops.append(mx.array(q), k, v, rows.layer(0), mx.ones(pairs), interleaved=interleaved)
        )
    wanted = np.zeros(q.shape)
    wanted[..., first] = np.cos(held + np.arange(new))[:, None]
    wanted[..., second] = np.sin(held + np.arange(new))[:, None]
    np.testing.assert_allclose(found, wanted, rtol=2.0**-11, atol=1e-6)
