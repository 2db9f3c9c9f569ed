"""A text under way: its job, how its tokens are chosen, and the one that is chosen but not yet read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import mlx.core as mx
import numpy as np

from ..sample import greedy
from ..sample.arrays import Array
from .choosing import Choice, Chooser, Found
from .logits import logit_range
from .request import Request
from .scheduler import Job


class Text:
    """What the engine keeps of one text.

    chosen: the next tokens that are not known yet: one, and while a step is worked out ahead two
    """

    def __init__(self, request: Request, job: Job, index: int) -> None:
        """index: of the continuation, among those of the request."""
        self.request, self.job = request, job
        self.chosen: list[Chosen] = []
        self.follower = None if request.constraint is None else request.constraint.begin()
        self.choose = Chooser(
            request.make_sampler(index),
            request.make_processors(),
            [*request.history, *request.prompt],
            self.follower,
        )

    @property
    def is_plain(self) -> bool:
        """Whether what `ops.choose` gives is all that is needed."""
        is_greedy = self.choose.sampler is greedy and not self.choose.processors
        return is_greedy and not self.request.logprobs and self.follower is None

    def next(self, made: Made, row: int) -> Chosen:
        """The next token, after a row of what a pass gave; or the error of choosing it."""
        position = self.job.count
        if self.is_plain:
            return Chosen(made, row, position)
        generated = position - self.job.prompt
        try:
            choice = self.choose(made.of(row), position, generated)
        except Exception as error:  # noqa: BLE001 - callers' functions raise anything, and others go on
            return Chosen(made, row, position, error=error)
        return Chosen(made, row, position, choice)

    def add(self, chosen: Chosen) -> None:
        """A token is chosen: the text computes a row in each step from now on."""
        self.chosen.append(chosen)
        self.job.chosen, self.job.decodes = len(self.chosen), self.job.past is not None

    def know(self, token: int) -> None:
        """The first of the tokens that are chosen is known."""
        del self.chosen[0]
        self.job.chosen = len(self.chosen)
        self.job.tokens.append(token)

    def follow(self, token: int) -> list[int]:
        """Tell the constraint of the next token; the tokens that have to come behind it."""
        if self.follower is None:
            return []
        self.follower.accept(token)
        if self.request.logprobs or self.follower.must_end:
            return []
        return self.follower.forced()

    def force(self, token: int) -> None:
        """Take a token that nothing was computed for; the next step reads it."""
        generated = len(self.job.tokens) - self.job.prompt
        if self.choose.seen is not None:
            self.choose.seen.force([token], generated)
        self.job.tokens.append(token)
        if self.follower is not None:
            self.follower.accept(token)


@dataclass(eq=False)
class Made:
    """What a pass gave: see `choosing.forward`."""

    logits: Array
    likeliest: Array
    ranges: Array

    @property
    def arrays(self) -> list[Array]:
        """What says which token is the likeliest."""
        return [self.likeliest, self.ranges]

    def of(self, row: int) -> Found:
        """For one sequence."""
        rows = slice(row, row + 1)
        return self.logits[rows], self.likeliest[rows], self.ranges[rows]

    @cached_property
    def ids(self) -> list[int]:
        """The likeliest tokens, read once for all; waits for them on a lazy backend."""
        ids: list[int] = np.asarray(self.likeliest).tolist()
        return ids

    @cached_property
    def extents(self) -> np.ndarray:
        """The ranges, read once for all."""
        return np.asarray(self.ranges)


@dataclass(eq=False)
class Chosen:
    """A token that is chosen, and perhaps not computed yet.

    made, row: what it was chosen from
    position: tokens before it
    choice: None where the likeliest token is taken
    error: why there is none; the row that is computed for it is void
    """

    made: Made
    row: int
    position: int
    choice: Choice | None = None
    error: Exception | None = None

    @property
    def arrays(self) -> list[Array]:
        """All that is to be computed for it, besides those of `made`."""
        return [] if self.choice is None else self.choice.arrays

    @property
    def token(self) -> Array:
        """Its id (1,), for the next pass of a lazy backend; within the vocabulary, whatever the sampler gave."""
        if self.choice is None:
            return self.made.of(self.row)[1]
        return mx.minimum(self.choice.token, self.made.logits.shape[-1] - 1)

    @property
    def value(self) -> int:
        """Its id; waits for it. Raises `error`, and ValueError if the logits were not such that one could be chosen."""
        if self.error is not None:
            raise self.error
        vocab_size = self.made.logits.shape[-1]
        if self.choice is None:
            extent = self.made.extents[self.row : self.row + 1]
            logit_range(extent, self.position, vocab_size).check()
            return self.made.ids[self.row]
        value = self.choice.value
        if not 0 <= value < vocab_size:
            raise ValueError(f"the sampler gave token {value}, expected 0 to {vocab_size - 1}")
        return value


def joined(tokens: Sequence[int | Chosen]) -> Array:
    """The ids (n,) as one array: NumPy's if all are known."""
    waiting = [token for token in tokens if isinstance(token, Chosen)]
    if not waiting:
        return np.array(tokens, np.int64)
    made = waiting[0].made
    if len(waiting) == len(tokens) == len(made.likeliest):
        same = (each.choice is None and each.made is made for each in waiting)
        if all(same) and [each.row for each in waiting] == list(range(len(waiting))):
            return made.likeliest  # as nearly always, so nothing is copied
    parts: list[Array] = []
    for is_known, group in groupby(tokens, lambda token: isinstance(token, int)):
        if is_known:
            parts.append(mx.array(list(group), mx.uint32))
        else:
            parts += [each.token for each in group if isinstance(each, Chosen)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)
