"""The same sequences twice: read by a recorded step, and by the model itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import random_models

import mlx_ferrum
from mlx_ferrum import ops
from mlx_ferrum.batch import Batch
from mlx_ferrum.state.model import ModelStates
from mlx_ferrum.state.sequence import Sequence as Text

VOCABULARY = 300
Run = Callable[[Batch], Any]


def load(folder: Path, case: str = "llama") -> Any:
    """A small random model of an architecture."""
    model, _ = mlx_ferrum.load(random_models.write_case(folder / "m.gguf", case, seed=3))
    return model


class Twins:
    """A model's sequences in two ModelStates: `step` reads those of the first, the model those of the second.

    run: what is repeated; by default the model's body, logits, and choice, as when text is generated
    calls: how often `step` called it
    """

    def __init__(
        self, model: Any, run: Run | None = None, *, block: int = 4, slack: int = 0
    ) -> None:
        self.model, self.run, self.calls = model, run or whole(model), 0
        self.step = ops.repeated(self._counted)
        self.sides = [
            ModelStates(model.body.keeps, ops.allocate, block=block, slack=slack) for _ in range(2)
        ]
        self.texts: list[tuple[Text, Text]] = []
        self.rng = np.random.default_rng(0)

    def _counted(self, batch: Batch) -> Any:
        self.calls += 1
        return self.run(batch)

    def begin(self, *held: int) -> list[int]:
        """A new sequence for each of `held`, the random tokens that it has; their numbers."""
        first = len(self.texts)
        for count in held:
            self.texts.append((self.sides[0].begin(), self.sides[1].begin()))
            if count:
                self.read({len(self.texts) - 1: count})
        return list(range(first, len(self.texts)))

    def read(self, counts: Mapping[int, int]) -> None:
        """Random tokens, several of a sequence at a time."""
        tokens = self.rng.integers(0, VOCABULARY, sum(counts.values()))
        for side, states in enumerate(self.sides):
            batch = states.batch(
                [(self.texts[i][side], n) for i, n in counts.items()], tokens.copy()
            )
            self.model.body(batch)
            batch.advance()

    def __call__(self, which: Sequence[int], tokens: Sequence[int] | None = None) -> Any:
        """One more token of each sequence: what the step gives, once it is what the model gives."""
        drawn = self.rng.integers(0, VOCABULARY, len(which)) if tokens is None else np.array(tokens)
        made = []
        for side, run in enumerate((self.step, self.run)):
            batch = self.sides[side].batch([(self.texts[i][side], 1) for i in which], drawn.copy())
            made.append(run(batch))
            batch.advance()
        for found, wanted in zip(*map(parts, made), strict=True):
            assert found.shape == wanted.shape and found.tobytes() == wanted.tobytes()
        return made[0]

    def free(self, i: int) -> None:
        """End a sequence."""
        for states, text in zip(self.sides, self.texts[i], strict=True):
            states.free(text)

    def rewind(self, i: int, position: int) -> None:
        """Go back, as far as both can."""
        reached = [s.rewind(t, position) for s, t in zip(self.sides, self.texts[i], strict=True)]
        assert reached[0] == reached[1]

    def assert_same_storage(self) -> None:
        """All keys and values are the same, to the last bit."""
        for one, other in zip(*(states.storages for states in self.sides), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(one.arrays, other.arrays, strict=True))


def whole(model: Any) -> Run:
    """What is repeated when text is generated."""

    def run(batch: Batch) -> Any:
        logits = model.scores(batch.last(model.body(batch)))
        return (logits, *ops.choose(logits))

    return run


def parts(found: Any) -> list[np.ndarray]:
    """The arrays that a step returns."""
    return [np.asarray(x) for x in (found if isinstance(found, tuple) else (found,))]
