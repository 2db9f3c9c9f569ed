"""The sizes of recurrent layers, and the launches that read and write their states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_ferrum import options
from mlx_ferrum.kernels.gated_delta import gated_delta
from mlx_ferrum.kernels.gated_norm import gated_norm
from mlx_ferrum.kernels.short_conv import Turns, short_conv

StateKernel = Literal["short_conv", "gated_delta", "gated_norm"]


@dataclass(frozen=True)
class Delta:
    """A recurrent layer.

    key_heads, heads: of keys and of values, `size` numbers each; kernel: rows of the convolution
    """

    key_heads: int
    heads: int
    size: int
    kernel: int = 4

    @property
    def values(self) -> int:
        """Rows of attn_gate."""
        return self.heads * self.size

    @property
    def channels(self) -> int:
        """Rows of attn_qkv."""
        return 2 * self.key_heads * self.size + self.values


@dataclass(frozen=True)
class StateLaunch:
    """A launch without quantized weights, of one text that goes from slot 0 into slot 1."""

    name: StateKernel
    delta: Delta

    @property
    def k(self) -> int:
        return self.delta.values if self.name == "gated_norm" else self.delta.channels

    @property
    def held(self) -> int:
        """Bytes of the state that it reads, and writes elsewhere."""
        d = self.delta
        return {
            "short_conv": 4 * (d.kernel - 1) * d.channels,
            "gated_delta": 4 * d.values * d.size,
            "gated_norm": 0,
        }[self.name]

    @property
    def nbytes(self) -> int:
        """That a token moves; the second-level cache keeps activations."""
        return 2 * self.held + 4 * self.delta.kernel * self.k * (self.name == "short_conv")

    def run(self, x: mx.array) -> None:
        """In the runner that is in use. x: (n, k)"""
        d, n = self.delta, x.shape[0]
        starts, sources = mx.array([0, n], mx.int32), mx.zeros(1, mx.int32)
        turns = Turns(starts, sources, sources + 1, n)
        if self.name == "short_conv":
            columns = mx.zeros((2, d.kernel - 1, d.channels))
            short_conv(x, mx.zeros((d.channels, d.kernel)), columns, turns, mark=None)
        elif self.name == "gated_delta":
            a, matrices = mx.zeros((n, d.heads)), mx.zeros((2, d.heads, d.size, d.size))
            rule = options.Delta(-mx.ones(d.heads), a[0], d.key_heads, 1e-6, is_tiled=True)
            gated_delta(x, a, a, matrices, turns, delta=rule, mark=None)
        else:
            gated_norm(x.reshape(n, d.heads, d.size), mx.ones(d.size), 1e-6, x)


def states(delta: Delta) -> list[StateLaunch]:
    """Of a layer, in their order."""
    names: tuple[StateKernel, ...] = ("short_conv", "gated_delta", "gated_norm")
    return [StateLaunch(name, delta) for name in names]
