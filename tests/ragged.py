"""Several texts read over one ModelStates, in ragged batches that are drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.experts import routes
from mlx_ferrum.experts.choices import observers
from mlx_ferrum.models.expert_layers import with_experts
from mlx_ferrum.nn import Experts
from mlx_ferrum.state.model import ModelStates

ACTIVE = 5  # texts at a time


class Reading:
    """Reads texts; `logits` and `experts` are what each row got, by (text, position).

    starts: how many positions of each text were held already when it began
    """

    def __init__(self, model: Any, states: ModelStates, texts: list[list[int]], seed: int) -> None:
        self.model, self.states, self.texts = model, states, texts
        self.logits: dict[tuple[int, int], np.ndarray] = {}
        self.experts: dict[tuple[int, int], np.ndarray] = {}
        self.starts: dict[int, int] = {}
        self.sizes: set[tuple[int, ...]] = set()
        self._rng = np.random.default_rng(seed)
        self._active: dict[int, Any] = {}
        self._left = list(range(len(texts)))

    def run(self) -> Reading:
        """Until all texts are read; those that end are freed, and others begin in their place."""
        while self._left or self._active:
            while self._left and len(self._active) < ACTIVE:
                text = self._left.pop(0)
                sequence = self.states.begin(self.texts[text])
                self._active[text], self.starts[text] = sequence, sequence.position
            self._pass()
            for text, sequence in list(self._active.items()):
                if sequence.position == len(self.texts[text]):
                    self.states.free(self._active.pop(text))
        return self

    def _pass(self) -> None:
        """Some rows of all active texts: one, as when they are generated, or a chunk of a prompt."""
        rows, at, ids = [], [], list[int]()
        for text, sequence in self._active.items():
            start, left = sequence.position, len(self.texts[text]) - sequence.position
            count = min(left, int(self._rng.choice([1, 1, 2, 3, 7])))
            rows.append((sequence, count))
            at += [(text, start + i) for i in range(count)]
            ids += self.texts[text][start : start + count]
        self.sizes.add(tuple(count for _, count in rows))
        batch = self.states.batch(rows, np.array(ids))
        seen: list[np.ndarray] = []
        with watched(self.model, seen):
            logits = np.array(self.model.scores(self.model.body(batch)))
        batch.advance()
        for row, place in enumerate(at):
            self.logits[place] = logits[row]
            self.experts[place] = np.array([ids[row] for ids in seen])


def watched(model: Any, seen: list[np.ndarray]) -> Any:
    """While entered, the experts of each layer's rows are added to `seen`."""
    has_experts = any(isinstance(layer.mlp, Experts) for layer in model.body.layers)
    layers = with_experts(model) if has_experts else []

    def note(_: Any, ids: Any, __: Any) -> None:
        seen.append(np.sort(np.array(ids), axis=-1))

    given: list[Callable[..., None]] = [note] * len(layers)
    return observers(layers, given)


class Alone:
    """One text read at once, from an empty cache: logits (length, vocab), experts (layers, length, used)."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self.logits = np.array(model(mx.array([ids])))[0]
        has_experts = any(isinstance(layer.mlp, Experts) for layer in model.body.layers)
        found = [np.sort(r.ids, axis=-1) for r in routes(model, ids)] if has_experts else []
        self.experts = np.array(found)

    def agrees(self, position: int, experts: np.ndarray) -> bool:
        """Whether the row at `position` got the same experts."""
        return bool(np.array_equal(self.experts[:, position], experts)) if experts.size else True


def small_states(model: Any, *, block: int, blocks: int, slack: int = 0) -> ModelStates:
    """States of a model, with a small pool; recurrent states have room for all active texts."""
    keeps, slots = model.make_cache().keeps, 4 * ACTIVE
    return ModelStates(keeps, ops.allocate, blocks=blocks, slots=slots, block=block, slack=slack)
