"""What encoders share: they see a whole text at once and make one vector of it, without a cache and without logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import mlx.core as mx

from ..notice import warn
from .base import LanguageModel, LoadedModel
from .metadata import Metadata

POOLING = {1: "mean", 2: "cls", 3: "last"}  # {architecture}.pooling_type
# Keys that the package's converter writes for a folder of sentence-transformers.
NORMALIZE, MAX_LENGTH = "sentence_transformers.normalize", "sentence_transformers.max_seq_length"


@dataclass(frozen=True)
class Pooling:
    """How a text becomes one vector.

    mode: "mean" of all tokens, or the vector of the first ("cls") or the "last"
    normalize: whether the model's authors scale vectors to length 1
    max_length: the most tokens of a text, those around it included
    """

    mode: str
    normalize: bool
    max_length: int

    @classmethod
    def from_metadata(cls, m: Metadata, context: int) -> Pooling:
        """Read and check the keys. Raises ValueError naming the key, NotImplementedError for another pooling."""
        key = f"{m.architecture}.pooling_type"
        if "pooling_type" not in m:
            warn(f"{key}: not in the file, so the vectors of a text's tokens are averaged")
        found = m.get("pooling_type", int, 1)
        if found not in POOLING:
            known = ", ".join(f"{n} ({name})" for n, name in POOLING.items())
            raise NotImplementedError(f"{key}: {found} is not supported, expected {known}")
        normalize, longest = m.values.get(NORMALIZE, True), m.values.get(MAX_LENGTH, context)
        if type(normalize) is not bool:
            raise ValueError(f"{NORMALIZE}: {normalize!r} found, expected a boolean")
        if type(longest) is not int or longest < 1:
            raise ValueError(f"{MAX_LENGTH}: {longest!r} found, expected a positive number")
        return cls(POOLING[found], normalize, min(longest, context))

    def __call__(self, x: mx.array, lengths: list[int]) -> mx.array:
        """x: (b, l, d), lengths: (b,), tokens of each text -> (b, d)"""
        if self.mode == "cls":
            return x[:, 0]
        ends = mx.array(lengths)
        if self.mode == "last":
            return x[mx.arange(x.shape[0]), ends - 1]
        seen = mx.arange(x.shape[1]) < ends[:, None]
        return mx.where(seen[..., None], x, 0).sum(1) / ends[:, None]


class Encoder(LoadedModel):
    """tokens (b, l) and the lengths (b,) of its rows -> one vector of each row, (b, d) float32."""

    pooling: Pooling
    context_length: int
    size: int  # d
    layers: list[Any]

    def __call__(self, tokens: mx.array, lengths: list[int]) -> mx.array:
        """Each architecture defines it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        sizes = [f"{len(self.layers)} layers", f"{self.size} wide"]
        sizes.append(f"{self.pooling.mode} of up to {self.pooling.max_length} tokens")
        return self.described(type(self).__module__.rpartition(".")[2], sizes)

    def make_cache(self, *_: object, **__: object) -> NoReturn:
        """Raises NotImplementedError, as does everything else that only a language model has."""
        raise NotImplementedError(
            "the model is an encoder, which makes embeddings and no text: use mlx_ferrum.embed"
        )

    hidden_states = logits = make_states = make_cache


def language_model(model: LoadedModel, name: str | Path) -> LanguageModel:
    """`model`, loaded from `name`, where text or logits are wanted. Raises NotImplementedError for an encoder."""
    if isinstance(model, Encoder):
        raise NotImplementedError(
            f"{name}: an encoder makes embeddings and no text; use python -m mlx_ferrum.embed"
        )
    return cast("LanguageModel", model)
