"""A layer of attention in blocks: sequences that append random rows, and attention in float64 over what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from backends import Backend

from mlx_ferrum import ops
from mlx_ferrum.batch import Place
from mlx_ferrum.state.kinds import KV
from mlx_ferrum.state.model import ModelStates
from mlx_ferrum.state.sequence import Sequence as Text

# 8 bits: a head's row has one scale, its largest number over 127, so each number is off by half a step at most
STEPS = 254
STILL = mx.zeros(1)  # frequencies by which nothing turns


@dataclass
class Rows:
    """What a pass appended.

    which: the sequences, q: (n, h, d) as drawn, turned: what `append` gave, at: where the rows lie
    """

    which: list[int]
    q: np.ndarray
    turned: Any
    at: Place

    def of(self, i: int) -> slice:
        """The rows of the i-th sequence of the batch."""
        start, stop = self.at.batch.starts[i : i + 2].tolist()
        return slice(start, stop)


class Layer:
    """A model of one layer without weights.

    past: of each sequence the keys (s, g, d) and values (s, g, dv) of all positions, as float64
    """

    def __init__(
        self, backend: Backend, kv: KV, heads: int, *, size: int = 32, slack: int = 0, seed: int = 0
    ) -> None:
        self.backend, self.kv, self.heads = backend, kv, heads
        self.states = ModelStates([kv], ops.allocate, block=size, slack=slack)
        self.rng = np.random.default_rng(seed)
        self.drawn = 0  # rows so far
        self.texts: list[Text] = []
        self.past: list[tuple[np.ndarray, np.ndarray]] = []

    def begin(self, *held: int) -> None:
        """A new sequence for each of `held`, the positions that it has."""
        for count in held:
            self.texts.append(self.states.begin())
            sizes = self.kv.key_dim, self.kv.value_dim
            keys, values = (np.zeros((0, self.kv.heads, size)) for size in sizes)
            self.past.append((keys, values))
            if count:
                self.append({len(self.texts) - 1: count})

    def draw(self, n: int, heads: int, size: int) -> np.ndarray:
        """Numbers (n, heads, size) that half precision holds, so that nothing is lost in storing them."""
        return self.rng.normal(size=(n, heads, size)).astype(np.float16).astype(np.float32)

    def append(
        self, counts: Mapping[int, int], *, spoiled: int | None = None, poison: float = np.nan
    ) -> Rows:
        """Append random rows, by sequence how many; `poison` is in all keys and values of sequence `spoiled`."""
        kv, n = self.kv, sum(counts.values())
        q = self.draw(n, self.heads, kv.key_dim)
        k, v = self.draw(n, kv.heads, kv.key_dim), self.draw(n, kv.heads, kv.value_dim)
        tokens = np.arange(
            self.drawn, self.drawn + n
        )  # all different: blocks of equal text are shared
        self.drawn += n
        batch = self.states.batch([(self.texts[i], count) for i, count in counts.items()], tokens)
        rows = Rows(list(counts), q, None, batch.layer(0))
        if spoiled is not None:
            mine = rows.of(rows.which.index(spoiled))
            k[mine, :, 1] = v[mine, :, 0] = poison
        given: list[Any] = [self.backend.array(x) for x in (q, k, v)]
        rows.turned = ops.append(given[0], given[1], given[2], rows.at, STILL, interleaved=False)
        batch.advance()
        self._remember(rows, k, v)
        return rows

    def _remember(self, rows: Rows, k: np.ndarray, v: np.ndarray) -> None:
        found = stored(rows.at)
        for x, held in zip((k, v), found, strict=True):
            assert_stored(held, x, self.kv.bits)
        for n, i in enumerate(rows.which):
            mine, (keys, values) = rows.of(n), self.past[i]
            self.past[i] = (
                np.concatenate([keys, found[0][mine]]),
                np.concatenate([values, found[1][mine]]),
            )

    def attended(self, rows: Rows, **options: Any) -> np.ndarray:
        """What `ops.attend` gives: (n, h, dv)."""
        return np.array(ops.to_mlx(ops.attend(rows.turned, rows.at, **options)))

    def wanted(self, rows: Rows, **options: Any) -> np.ndarray:
        """The same in float64."""
        return np.concatenate(
            [
                attention(rows.q[rows.of(n)], *self.past[i], window=self.kv.window, **options)
                for n, i in enumerate(rows.which)
            ]
        )


def stored(at: Place) -> tuple[np.ndarray, np.ndarray]:
    """Keys (n, g, d) and values (n, g, dv) of a batch's rows as they lie in storage, as float64."""
    held, slots = at.storage, at.paging.slots
    found = []
    named = held.named
    for name in ("key", "value"):
        numbers, scales = named[f"{name}s"], named.get(f"{name}_scales")
        x = np.array(numbers).astype(np.float64)[slots // held.size, :, slots % held.size]
        if scales is not None:
            with np.errstate(invalid="ignore"):  # 0 times infinity
                x *= np.array(scales)[slots // held.size, :, slots % held.size][..., None]
        found.append(x)
    return found[0], found[1]


def assert_stored(held: np.ndarray, x: np.ndarray, bits: int) -> None:
    """held: (n, g, d) is x, exactly or within half a step of 8 bits. Heads with a NaN keep one."""
    has_nan, whole = np.isnan(x).any(axis=-1), np.isfinite(x).all(axis=-1)
    assert np.isnan(held[has_nan]).any(axis=-1).all()
    found, wanted = held[whole], x[whole].astype(np.float64)
    steps = np.abs(wanted).max(axis=-1, keepdims=True, initial=0) / STEPS
    assert (np.abs(found - wanted) <= (steps * (1 + 1e-4) if bits == 8 else 0)).all()


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    scale: float,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: np.ndarray | mx.array | None = None,
) -> np.ndarray:
    """q: (l, h, d), of the last l of s positions, k: (s, g, d), v: (s, g, dv) -> (l, h, dv), all in float64."""
    length, held, per_group = len(q), len(k), q.shape[1] // k.shape[1]
    behind = np.arange(held - length, held)[:, None] - np.arange(held)
    seen = (behind >= 0) & (behind < (window or held))
    k, v = (x.astype(np.float64).repeat(per_group, axis=1) for x in (k, v))
    scores = scale * np.einsum("lhd,shd->lhs", q.astype(np.float64), k)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = np.where(seen[:, None], scores, -np.inf)
    if sinks is not None:
        sink = np.broadcast_to(np.array(sinks, np.float64)[:, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, sink], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("lhs,shd->lhd", weights[..., :held], v)
