"""What every architecture shares: its sizes from the metadata, its tensors checked by shape, and the head.

Knows no file and no block type: tensors arrive as QTensors under their GGUF names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from .. import ops
from ..cache import Cache, KVCache, check_caches
from ..nn import GatedMLP, QEmbedding, QLinear, RMSNorm
from ..profile import stage
from ..rope import RopeArgs
from ..tensor import QTensor
from .experts import ExpertArgs
from .metadata import MAX_LAYERS, Metadata


@dataclass(frozen=True)
class BaseArgs:
    """The sizes that every architecture has; experts: of the layers that have some, None where all are dense."""

    architecture: str
    vocab_size: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    norm_eps: float
    context_length: int
    rope: RopeArgs
    experts: ExpertArgs | None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.architecture}: {self.num_heads} heads are not a multiple of "
                f"{self.num_kv_heads} key-value heads"
            )
        if self.rope.dims > self.head_dim:
            raise ValueError(
                f"{self.architecture}.rope.dimension_count: expected {self.head_dim} at most, "
                f"found {self.rope.dims}"
            )

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        return self.head_dim**-0.5

    @classmethod
    def fields(cls, m: Metadata) -> dict[str, Any]:
        """The fields of this class, read from the metadata."""
        hidden, heads = m.size("embedding_length"), m.size("attention.head_count")
        head_dim = m.size("attention.key_length", max(1, hidden // heads))
        return {
            "architecture": m.architecture,
            "vocab_size": vocab_size(m),
            "num_layers": m.size("block_count", most=MAX_LAYERS),
            "hidden_size": hidden,
            "intermediate_size": m.size("feed_forward_length"),
            "num_heads": heads,
            "num_kv_heads": m.size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "value_dim": m.size("attention.value_length", head_dim),
            "norm_eps": m.positive("attention.layer_norm_rms_epsilon"),
            "context_length": m.size("context_length"),
            "rope": rope_args(m, head_dim),
            "experts": None,
        }

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any], architecture: str) -> BaseArgs:
        """Read and check the sizes. Raises ValueError naming the key."""
        m = Metadata(values, architecture)
        args = cls(**cls.fields(m))
        if args.experts is None and m.get("expert_count", int, 0):
            raise NotImplementedError(f"{architecture} with experts is not supported")
        return args


def vocab_size(m: Metadata) -> int:
    """As many as the tokenizer has; a file without one says the number."""
    tokens = m.values.get("tokenizer.ggml.tokens")
    return m.size("vocab_size") if tokens is None else len(tokens)


def rope_args(m: Metadata, head_dim: int) -> RopeArgs:
    """The rotary embedding as the metadata describes it; `rope.scale_linear` is the older word for a linear factor."""
    for name, plain in (("yarn_log_multiplier", 0.0), ("yarn_ext_factor", 1.0)):
        if m.get(f"rope.scaling.{name}", float, plain) not in (plain, -1.0):
            raise NotImplementedError(f"{m.architecture}.rope.scaling.{name} is not supported")
    scaling = m.get("rope.scaling.type", str, "none")
    factor = m.positive("rope.scaling.factor", m.positive("rope.scale_linear", 1.0))
    if scaling == "none" and "rope.scaling.type" not in m and factor != 1.0:
        scaling = "linear"
    context = m.size("rope.scaling.original_context_length", m.size("context_length"))
    return RopeArgs(
        dims=m.size("rope.dimension_count", head_dim),
        base=m.positive("rope.freq_base", 10000.0),
        scaling=scaling,
        factor=factor,
        original_context=context,
        attention_factor=m.positive("rope.scaling.attn_factor", 1.0),
        beta_fast=m.positive("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=m.positive("rope.scaling.yarn_beta_slow", 1.0),
    )


class Weights:
    """The tensors of a file under a common prefix, each checked by shape when it is taken."""

    def __init__(
        self, tensors: Mapping[str, QTensor], prefix: str = "", left: set[str] | None = None
    ) -> None:
        self.tensors, self.prefix = tensors, prefix
        self.left = set(tensors) if left is None else left

    def layer(self, i: int) -> Weights:
        """The tensors of block i."""
        return Weights(self.tensors, f"blk.{i}.", self.left)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def tensor(self, name: str, *shape: int) -> QTensor:
        """A tensor by name. Raises ValueError if it is missing or shaped otherwise."""
        full = self.prefix + name
        if full not in self.tensors:
            raise ValueError(f"tensor {full!r} is missing")
        found = self.tensors[full]
        if found.shape != shape:
            raise ValueError(f"tensor {full!r}: expected shape {shape}, found {found.shape}")
        self.left.discard(full)
        return found

    def vector(self, name: str, size: int) -> mx.array:
        """A small tensor, (size,) float32."""
        return mx.array(ops.dequantize(self.tensor(name, size)))

    def embedding(self, name: str, rows: int, k: int, scale: float = 1.0) -> QEmbedding:
        """`NAME.weight` (rows, k) as a table of rows, each times `scale`."""
        return QEmbedding(self.tensor(f"{name}.weight", rows, k), scale)

    def linear(self, name: str, rows: int, k: int) -> QLinear:
        """`NAME.weight` (rows, k), with `NAME.bias` where the file has one."""
        weight = self.tensor(f"{name}.weight", rows, k)
        has_bias = f"{name}.bias" in self
        return QLinear(weight, self.vector(f"{name}.bias", rows) if has_bias else None)

    def norm(self, name: str, size: int, eps: float) -> RMSNorm:
        """`NAME.weight` (size,) as an RMS norm."""
        return RMSNorm(self.vector(f"{name}.weight", size), eps)

    def rope_factors(self, pairs: int) -> np.ndarray | None:
        """`rope_freqs.weight`, (pairs,) divisors of the rotary frequencies, where the file has it.

        Raises ValueError unless all are positive, finite numbers.
        """
        name = "rope_freqs.weight"
        if name not in self:
            return None
        factors = np.asarray(self.vector(name, pairs)).astype(np.float64)
        wrong = factors[~(np.isfinite(factors) & (factors > 0))]
        if wrong.size:
            raise ValueError(f"tensor {name!r}: expected positive numbers, found {wrong[0]}")
        return factors

    def check_all_used(self) -> None:
        """Raises ValueError if the file has tensors that the model did not take: they would change what it says."""
        if self.left:
            names = sorted(self.left)
            shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            raise ValueError(f"{len(names)} tensors that this architecture does not know: {shown}")


class MLP(GatedMLP):
    """x and add: (b, l, hidden) -> (b, l, hidden), from `ffn_gate`, `ffn_up`, `ffn_down`."""

    def __init__(self, args: BaseArgs, w: Weights, act: ops.Activation = "silu") -> None:
        wide, narrow = args.intermediate_size, args.hidden_size
        super().__init__(
            w.tensor("ffn_gate.weight", wide, narrow),
            w.tensor("ffn_up.weight", wide, narrow),
            w.linear("ffn_down", narrow, wide),
            act,
        )

    @stage("mlp")
    def __call__(
        self, x: mx.array, norm: RMSNorm | None = None, add: mx.array | None = None
    ) -> mx.array:
        return super().__call__(x, norm, add)


class LanguageModel(nn.Module):
    """tokens -> logits. An architecture gives `body` and, where its layers differ, `make_cache`."""

    body: nn.Module
    fingerprint: str = ""  # of the file's tensors, set by load; saved caches are checked against it

    def __init__(self, args: BaseArgs, w: Weights) -> None:
        super().__init__()
        self.args = args
        self.output = None
        if "output.weight" in w:
            shape = (args.vocab_size, args.hidden_size)
            self.output = QLinear(w.tensor("output.weight", *shape))

    def __call__(self, tokens: mx.array, cache: list[Cache] | None = None) -> mx.array:
        """tokens: (b, l) integers -> logits (b, l, vocabulary) float32; cache: from `make_cache`, updated in place.

        Raises ValueError for tokens of another shape or type, and for a cache of another model.
        """
        _check_tokens(tokens)
        if cache is None:
            cache = self.make_cache()
        check_caches(cache, self)
        return self.head(self.body(tokens, cache))

    @stage("head")
    def head(self, x: mx.array) -> mx.array:
        """x: (..., hidden) -> logits (..., vocabulary)"""
        logits = self.body.embed_tokens.as_linear(x) if self.output is None else self.output(x)
        return self.finish(ops.to_mlx(logits))

    def finish(self, logits: mx.array) -> mx.array:
        """logits: (..., vocabulary), as the architecture ends them."""
        return logits

    def make_cache(self) -> list[Cache]:
        """Empty caches, one a layer."""
        return [KVCache() for _ in range(self.args.num_layers)]


def _check_tokens(tokens: Any) -> None:
    """Raises ValueError unless they are an array (b, l) of integers."""
    if not isinstance(tokens, mx.array | np.ndarray):
        raise ValueError(
            f"tokens are a {type(tokens).__name__}, expected an mx.array (batch, length)"
        )
    if isinstance(tokens, mx.array):
        is_integer = mx.issubdtype(tokens.dtype, mx.integer)
    else:
        is_integer = np.issubdtype(tokens.dtype, np.integer)
    if tokens.ndim != 2 or 0 in tokens.shape or not is_integer:
        raise ValueError(
            f"tokens are {tokens.dtype} {tuple(tokens.shape)}, expected integers (batch, length)"
        )


def heads(x: mx.array, n: int) -> mx.array:
    """x: (b, l, n d) -> (b, l, n, d)"""
    return x.reshape(*x.shape[:2], n, -1)


__all__ = ["MLP", "BaseArgs", "LanguageModel", "Metadata", "Weights", "heads"]
