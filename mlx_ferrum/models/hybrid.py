"""What hybrid architectures share: gated delta net layers between layers of gated full attention.

Keys and tensors as llama.cpp's converter writes them, in its older and newer spellings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from .. import ops
from ..batch import RecurrentPlace
from ..nn import FusedLinear, Module, QLinear, RMSNorm
from ..profile import stage
from ..rope import Rope
from ..state.kinds import Recurrent
from . import llama, qwen3
from .base import BaseArgs, Metadata, Weights
from .metadata import MAX_LAYERS

INTERVAL = 4  # every so many layers one has attention, where the file does not say


@dataclass(frozen=True)
class DeltaArgs:
    """Of the recurrent layers.

    kernel: of the short convolution, in rows
    size: of a key and of a value of one head
    key_heads, value_heads: the latter a multiple of the former
    """

    kernel: int
    size: int
    key_heads: int
    value_heads: int

    @property
    def values(self) -> int:
        """Numbers in the values of all heads."""
        return self.value_heads * self.size

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.size + self.values


@dataclass(frozen=True)
class HybridArgs(BaseArgs):
    """The common sizes, and which layers are recurrent."""

    delta: DeltaArgs
    recurrent: tuple[bool, ...]

    skips_predictors: ClassVar[bool] = True

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        layers = trunk(m)
        recurrent = recurrent_layers(m, layers)
        m.without("attention.head_count_kv", recurrent)
        sizes = {"num_layers": layers, "delta": delta_args(m), "recurrent": recurrent}
        return super().fields(m) | sizes


def trunk(m: Metadata) -> int:
    """Layers of the model itself: the file counts those that predict further tokens too."""
    layers = m.size("block_count", most=MAX_LAYERS)
    return layers - m.size("nextn_predict_layers", 0, layers - 1, zero=0)


def recurrent_layers(m: Metadata, layers: int) -> tuple[bool, ...]:
    """Whether each layer is recurrent: `attention.recurrent_layers`, or all but every `full_attention_interval`-th."""
    name = "attention.recurrent_layers"
    interval = m.size("full_attention_interval", INTERVAL, MAX_LAYERS)
    flags = m.raw(name)
    if flags is None:
        found = [(i + 1) % interval != 0 for i in range(layers)]
    else:
        blocks = m.size("block_count", most=MAX_LAYERS)
        flags = np.asarray(flags)
        if flags.dtype != np.bool_ or flags.shape not in ((blocks,), (layers,)):
            shape = "x".join(map(str, flags.shape))
            raise ValueError(
                f"{m.architecture}.{name}: expected {blocks} booleans, one a layer, found {shape} "
                f"of {flags.dtype}"
            )
        found = flags.tolist()
        if any(found[layers:]):
            raise ValueError(
                f"{m.architecture}.{name}: layer {layers + found[layers:].index(True)} predicts further "
                "tokens, expected such layers not to be recurrent"
            )
    return tuple(found[:layers])


def delta_args(m: Metadata) -> DeltaArgs:
    """The sizes of the recurrent layers. Raises ValueError naming the key that does not fit the others."""
    found = DeltaArgs(
        kernel=m.size("ssm.conv_kernel", most=256),
        size=m.size("ssm.state_size", most=1024),
        key_heads=m.size("ssm.group_count", most=4096),
        value_heads=m.size("ssm.time_step_rank", most=4096),
    )
    if found.kernel < 2:
        raise ValueError(f"{m.architecture}.ssm.conv_kernel: expected 2 at least, found 1")
    if found.value_heads % found.key_heads:
        raise ValueError(
            f"{m.architecture}.ssm.time_step_rank: expected a multiple of {found.key_heads} "
            f"(ssm.group_count), found {found.value_heads}"
        )
    inner = m.size("ssm.inner_size", found.values)
    if inner != found.values:
        raise ValueError(
            f"{m.architecture}.ssm.inner_size: expected {found.value_heads} heads of {found.size}, "
            f"found {inner}"
        )
    return found


class GatedAttention(qwen3.Attention):
    """As Qwen 3's, with a gate for each number of what a head gives, which lies behind the head's query."""

    gated = True


class DeltaNet(Module):
    """A gated delta net over x, normed: x and add, a residual: (n, hidden) -> (n, hidden)

    is_tiled: value head i reads key head i % key_heads, as in newer files, else i // (value_heads / key_heads)
    """

    def __init__(self, args: HybridArgs, w: Weights, *, is_tiled: bool) -> None:
        super().__init__()
        sizes, hidden = args.delta, args.hidden_size
        self.keeps = Recurrent(sizes.channels, sizes.kernel - 1, sizes.value_heads, sizes.size)
        self.in_proj = FusedLinear(*projections(sizes, hidden, w))
        conv = w.tensor("ssm_conv1d.weight", sizes.channels, sizes.kernel)
        self.conv = mx.array(ops.dequantize(conv))
        self.delta = ops.Delta(
            decay=_decay(w, sizes.value_heads),
            dt=w.vector("ssm_dt.bias", sizes.value_heads),
            key_heads=sizes.key_heads,
            eps=args.norm_eps,
            is_tiled=is_tiled,
        )
        self.norm = w.norm("ssm_norm", sizes.size, args.norm_eps)
        self.out_proj = w.linear("ssm_out", hidden, sizes.values)

    @stage("delta")
    def __call__(
        self, x: ops.Array, at: RecurrentPlace, norm: RMSNorm, add: ops.Array | None = None
    ) -> ops.Array:
        qkv, z, b, a = self.in_proj(x, norm)
        qkv = ops.short_conv(qkv, self.conv, at)
        out = ops.gated_delta(qkv, a, b, at, self.delta)  # (n, h, s)
        return self.out_proj(ops.gated_norm(out, *self.norm.args, z), add)


def _decay(w: Weights, heads: int) -> mx.array:
    """`ssm_a`. Raises ValueError unless all numbers are negative or 0: states would grow without bounds."""
    found = w.vector("ssm_a", heads)
    wrong = np.asarray(found)[~(np.asarray(found) <= 0)]
    if wrong.size:
        raise ValueError(
            f"tensor {w.prefix + 'ssm_a'!r}: expected numbers of 0 or less, found {wrong[0]}"
        )
    return found


def projections(sizes: DeltaArgs, hidden: int, w: Weights) -> list[QLinear]:
    """To queries, keys and values; to z; to b; and to a."""
    return [*_inputs(sizes, hidden, w), *_gates(sizes, hidden, w)]


def _inputs(sizes: DeltaArgs, hidden: int, w: Weights) -> list[QLinear]:
    """Older files have one tensor with the rows of q, k, v and z of each key head together: its rows are copied."""
    if "ssm_in.weight" not in w:
        return [
            w.linear("attn_qkv", sizes.channels, hidden),
            w.linear("attn_gate", sizes.values, hidden),
        ]
    total, size = sizes.channels + sizes.values, sizes.size
    values = sizes.values // sizes.key_heads
    parts = _mixed(sizes.key_heads, [size, size, values, values])
    rows = w.tensor("ssm_in.weight", total, hidden).permuted(np.concatenate(parts))
    return [QLinear(rows.part(0, sizes.channels)), QLinear(rows.part(sizes.channels, total))]


def _gates(sizes: DeltaArgs, hidden: int, w: Weights) -> list[QLinear]:
    """The first of these architectures has one small tensor with the rows of b and a of each key head together."""
    count = sizes.value_heads
    if "ssm_ba.weight" not in w:
        return [w.linear("ssm_beta", count, hidden), w.linear("ssm_alpha", count, hidden)]
    together = count // sizes.key_heads
    parts = _mixed(sizes.key_heads, [together, together])
    rows = w.tensor("ssm_ba.weight", 2 * count, hidden).permuted(np.concatenate(parts))
    return [QLinear(rows.part(0, count)), QLinear(rows.part(count, 2 * count))]


def _mixed(groups: int, sizes: list[int]) -> list[np.ndarray]:
    """The rows of each part, where each group has so many rows of the first part, then of the second, …"""
    rows = np.arange(groups * sum(sizes)).reshape(groups, -1)
    return [part.reshape(-1) for part in np.split(rows, np.cumsum(sizes)[:-1], axis=1)]


class DecoderLayer(llama.DecoderLayer):
    """x: (n, hidden) -> (n, hidden), with a gated delta net or gated attention"""

    ffn_norm = "post_attention_norm"
    is_tiled: ClassVar[bool] = True

    def make_attention(self, args: BaseArgs, w: Weights, rope: Rope, i: int) -> Module:
        assert isinstance(args, HybridArgs)
        if args.recurrent[i]:
            return DeltaNet(args, w, is_tiled=self.is_tiled)
        return GatedAttention(args, w, rope)


class Model(llama.Model):
    """tokens: (b, l) -> logits (b, l, vocabulary) float32"""

    layer = DecoderLayer

    def __init__(self, args: BaseArgs, w: Weights) -> None:
        if (first := "blk.0.attn_norm.weight") not in w:
            raise ValueError(
                f"tensor {first!r} is missing: files that only predict further tokens beside another model are not "
                "supported"
            )
        super().__init__(args, w)
        w.skip_layers(args.num_layers)
