"""What every architecture shares: its sizes from the metadata, the MLP, and the head.

Knows no file and no block type: tensors arrive as QTensors under their GGUF names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from .. import amounts, ops
from ..batch import Batch
from ..cache import Cache, check_cache
from ..nn import GatedMLP, Module, QLinear, RMSNorm
from ..profile import stage
from ..rope import RopeArgs
from ..sample.recommended import Recommended
from ..state.kinds import KV, Keeps
from ..state.model import ModelStates
from ..state.paged import BLOCK
from .experts import ExpertArgs
from .metadata import MAX_LAYERS, Metadata
from .weights import Weights


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

    skips_predictors: ClassVar[bool] = (
        False  # whether layers that predict further tokens are left out
    )

    def __post_init__(self) -> None:
        if self.experts is None and self.intermediate_size < 1:
            raise ValueError(
                f"{self.architecture}.feed_forward_length: expected the width of the MLP, found none"
            )
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
            "intermediate_size": m.size("feed_forward_length", 0, zero=0),
            "num_heads": heads,
            "num_kv_heads": m.size("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "value_dim": m.size("attention.value_length", head_dim),
            "norm_eps": m.positive("attention.layer_norm_rms_epsilon", zero=0.0),
            "context_length": m.size("context_length"),
            "rope": rope_args(m, head_dim),
            "experts": None,
        }

    @classmethod
    def from_metadata(cls, values: Mapping[str, Any], architecture: str) -> BaseArgs:
        """Read and check the sizes. Raises ValueError naming the key, NotImplementedError for what is not supported."""
        m = Metadata(values, architecture)
        if not m.get("attention.causal", bool, True):
            raise NotImplementedError(
                f"{architecture}.attention.causal: attention to later positions is not supported"
            )
        if not cls.skips_predictors and m.size("nextn_predict_layers", 0, zero=0):
            raise NotImplementedError(
                f"{architecture}.nextn_predict_layers: layers that predict further tokens are not supported"
            )
        args = cls(**cls.fields(m))
        if args.experts is None and m.get("expert_count", int, 0):
            raise NotImplementedError(f"{architecture} with experts is not supported")
        m.warn_of_foreign()
        return args


def vocab_size(m: Metadata) -> int:
    """As many as the tokenizer has; a file without one says the number."""
    tokens = m.values.get("tokenizer.ggml.tokens")
    return m.size("vocab_size") if tokens is None else len(tokens)


def rope_args(m: Metadata, head_dim: int) -> RopeArgs:
    """The rotary embedding as the metadata describes it; `rope.scale_linear` is the older word for a linear factor."""
    scaling = m.get("rope.scaling.type", str, "none")
    factor = m.positive(
        "rope.scaling.factor", m.positive("rope.scale_linear", 1.0, zero=1.0), zero=1.0
    )
    if scaling == "none" and "rope.scaling.type" not in m and factor != 1.0:
        scaling = "linear"
    whole = m.size("context_length")
    context = m.size("rope.scaling.original_context_length", whole, zero=whole)
    return RopeArgs(
        dims=m.size("rope.dimension_count", head_dim),
        base=m.positive("rope.freq_base", 10000.0),
        scaling=scaling,
        factor=factor,
        original_context=context,
        attention_factor=m.positive("rope.scaling.attn_factor", 1.0),
        beta_fast=m.positive("rope.scaling.yarn_beta_fast", 32.0, zero=32.0),
        beta_slow=m.positive("rope.scaling.yarn_beta_slow", 1.0, zero=1.0),
    )


class MLP(GatedMLP):
    """x and add: (n, hidden) -> (n, hidden), from `ffn_gate`, `ffn_up`, `ffn_down`."""

    def __init__(self, args: BaseArgs, w: Weights, act: ops.Activation = "silu") -> None:
        wide, narrow = args.intermediate_size, args.hidden_size
        gate, up = w.linears("ffn_up", narrow, {"ffn_gate": wide, "ffn_up": wide})
        super().__init__(gate, up, w.linear("ffn_down", narrow, wide), act)

    @stage("mlp")
    def __call__(
        self, x: ops.Array, norm: RMSNorm | None = None, add: ops.Array | None = None
    ) -> ops.Array:
        return super().__call__(x, norm, add)


class Decoder(Module):
    """Embeddings, layers, a norm: a batch of n rows -> (n, hidden), normed for the head."""

    embed_tokens: Module
    layers: list[Any]
    norm: Module

    @property
    def keeps(self) -> list[Keeps]:
        """What each layer keeps of a sequence."""
        return [layer.keeps for layer in self.layers]

    def __call__(self, batch: Batch, see: Callable[[ops.Array], None] | None = None) -> ops.Array:
        """see: called with the embeddings, then with what each layer gives, (n, hidden)."""
        x = self.embed_tokens(batch.tokens)
        if see is not None:
            see(x)
        return self.norm(self.run(x, batch, 0, len(self.layers), see))

    def run(
        self,
        x: ops.Array,
        batch: Batch,
        first: int,
        stop: int,
        see: Callable[[ops.Array], None] | None = None,
    ) -> ops.Array:
        """What layers first to stop - 1 make of x, (n, hidden), before the norm."""
        for i in range(first, stop):
            x = self.layers[i](x, batch.layer(i))
            if see is not None:
                see(x)
        return x

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.layers)} layers)"


class LoadedModel(Module):
    """What `load` says of a model's file."""

    fingerprint: str = ""  # of the file's tensors; saved caches are checked against it
    nbytes: int = 0  # of the file's tensors
    parameter_count: int = 0  # how many numbers the file's tensors hold
    types: str = ""  # that most of them have, such as "Q4_K + Q6_K"
    recommended: Recommended = Recommended()  # sampling
    check_file: Callable[..., None] | None = None  # `GGUF.check`
    streams: Any = None  # `streamed.Streams`, if experts are read from disk

    def described(self, architecture: str, sizes: list[str]) -> str:
        """One line for people: the sizes, then what the weights take and which backend runs them."""
        said = [*sizes]
        if self.nbytes:
            weights = f"{amounts.count(self.parameter_count)} parameters"
            said += [self.types, weights, amounts.size(self.nbytes)]
        if (backend := ops.backend_in_use()) is not None:
            said.append(backend)
        return f"{architecture}({', '.join(said)})"


class LanguageModel(LoadedModel):
    """tokens -> logits. An architecture gives `body`."""

    body: Decoder

    def __init__(self, args: BaseArgs, w: Weights) -> None:
        super().__init__()
        self.args = args
        name = "output" if "output.weight" in w else "token_embd"
        weight = w.tensor(f"{name}.weight", args.vocab_size, args.hidden_size)
        self.output = QLinear(weight, w.bias("output", args.vocab_size))

    def __call__(self, tokens: mx.array, cache: Cache | None = None) -> mx.array:
        """tokens: (b, l) integers -> logits (b, l, vocabulary) float32; cache: from `make_cache`, updated in place.

        Raises ValueError for tokens of another shape or type or outside the vocabulary, for a cache of another model,
        and if the model's file changed since it was loaded.
        """
        batch = self._batch(tokens, cache)
        logits = self.head(self.body(batch)).reshape(*tokens.shape, -1)
        batch.advance()
        return logits

    def hidden_states(self, tokens: mx.array, cache: Cache | None = None) -> list[mx.array]:
        """What the layers pass on: tokens (b, l) -> layers + 1 arrays, each (b, l, hidden) float32.

        The first one is the embeddings, the last one what the last layer gives, before the final norm. `logits`
        reads any of them. cache and errors: as when the model is called.
        """
        states: list[mx.array] = []
        batch = self._batch(tokens, cache)
        self.body(batch, lambda x: states.append(ops.to_mlx(x).reshape(*tokens.shape, -1)))
        mx.eval(states)
        batch.advance()
        return states

    def logits(self, hidden: mx.array) -> mx.array:
        """The final norm, then the head: hidden (..., hidden) -> logits (..., vocabulary) float32.

        The last of the hidden states gives the model's own logits, an earlier one what the model would say if the
        layers after it were left out (the "logit lens").
        Raises ValueError for hidden states of another width, and for none.
        """
        _check_hidden(hidden, self.args.hidden_size)
        return self.head(self.body.norm(hidden))

    def __repr__(self) -> str:
        args = self.args
        sizes = [f"{args.num_layers} layers", f"{args.hidden_size} wide"]
        if args.experts is not None:
            sizes.append(f"{args.experts.routing.used} of {args.experts.count} experts")
        return self.described(args.architecture, sizes)

    def _batch(self, tokens: mx.array, cache: Cache | None) -> Batch:
        """The tokens over the given cache, or a new one, once everything is checked."""
        _check_tokens(tokens)
        if cache is None:
            cache = self.make_cache()
        check_cache(cache, self)
        if self.check_file is not None:
            self.check_file()
        return cache.batch(np.asarray(tokens))  # whose ids the cache then knows

    def head(self, x: ops.Array) -> mx.array:
        """x: (..., hidden) -> logits (..., vocabulary) float32"""
        return ops.to_mlx(self.scores(x))

    @stage("head")
    def scores(self, x: ops.Array) -> ops.Array:
        """x: (..., hidden) -> logits (..., vocabulary), in the backend's kind of array"""
        return self.finish(self.output(x))

    def finish(self, logits: ops.Array) -> ops.Array:
        """logits: (..., vocabulary), as the architecture ends them."""
        return logits

    def make_cache(self, *, kv_bits: int = 16) -> Cache:
        """An empty cache of one or more sequences that grow in step.

        kv_bits: of each number in keys and values: 16, or 8, which takes half the memory and is less exact
        Raises ValueError for another number of bits.
        """
        return Cache(self._keeps(kv_bits), self.fingerprint)

    def make_states(
        self,
        *,
        blocks: int | None = None,
        slots: int | None = None,
        slack: int = 0,
        block: int = BLOCK,
        kv_bits: int = 16,
    ) -> ModelStates:
        """What the model keeps of many sequences, which come and go; see `ModelStates`. kv_bits: as of `make_cache`."""
        keeps = self._keeps(kv_bits)
        return ModelStates(
            keeps, ops.allocate, blocks=blocks, slots=slots, slack=slack, block=block
        )

    def _keeps(self, kv_bits: int) -> list[Keeps]:
        return [
            replace(keeps, bits=kv_bits) if isinstance(keeps, KV) else keeps
            for keeps in self.body.keeps
        ]


def _check_hidden(hidden: Any, size: int) -> None:
    """Raises ValueError unless they are an array (..., size) that is not empty."""
    if not isinstance(hidden, mx.array | np.ndarray):
        found = type(hidden).__name__
        raise ValueError(f"hidden states are a {found}, expected an mx.array (..., {size})")
    if hidden.size == 0 or not hidden.shape or hidden.shape[-1] != size:
        raise ValueError(f"hidden states are {tuple(hidden.shape)}, expected (..., {size})")


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


def heads(x: ops.Array, n: int) -> ops.Array:
    """x: (..., n d) -> (..., n, d)"""
    return x.reshape(*x.shape[:-1], n, -1)


__all__ = [
    "MLP",
    "BaseArgs",
    "Decoder",
    "LanguageModel",
    "LoadedModel",
    "Metadata",
    "Weights",
    "heads",
]
