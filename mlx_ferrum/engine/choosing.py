"""The next token of one text, from the logits after its last one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.batch import Batch
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, greedy, log_softmax
from mlx_ferrum.sample.arrays import Array, at_hand, best, tokens
from mlx_ferrum.sample.checks import short
from mlx_ferrum.sample.processors import Own
from mlx_ferrum.sample.samplers import Drawing

from .constraint import Follower, constrained
from .logits import LogitRange, logit_range

Found = tuple[Array, Array, Array]
Forward = Callable[[Batch], Found]


class Choice:
    """A step's token, and the logits that it was chosen from; not yet computed on a lazy backend.

    token: (1,) ids
    arrays: those of MLX that have to be computed
    scores: (1, vocab), logits or, where `is_normalized`, log-probabilities
    """

    def __init__(
        self,
        token: Array,
        scores: Array,
        ranges: list[LogitRange],
        arrays: list[mx.array],
        *,
        is_normalized: bool,
    ) -> None:
        self.token, self.scores, self.arrays, self._ranges = token, scores, arrays, ranges
        self._is_normalized = is_normalized

    @cached_property
    def value(self) -> int:
        """The token's id. Raises ValueError if the logits were not such that one could be chosen."""
        for found in self._ranges:
            if not isinstance(found.extent, np.ndarray):  # others are checked
                found.check()
        return int(np.asarray(self.token)[0])

    def logprobs(self) -> mx.array:
        """Log-probabilities (vocab,), lazy, so they are made in the thread that they are for."""
        scores = mx.array(self.scores)
        return (scores if self._is_normalized else log_softmax(scores))[0]


class Chooser:
    """Picks the next token from logits; remembers the tokens when a processor wants them.

    follower: says which tokens may come next
    """

    def __init__(
        self,
        sampler: Sampler,
        processors: Sequence[Processor],
        seen: list[int],
        follower: Follower | None = None,
    ) -> None:
        self.sampler, self.processors, self.follower = sampler, processors, follower
        self.seen = Seen(seen) if processors else None

    def __call__(self, found: Found, position: int, generated: int) -> Choice:
        """The token at `position`, the next one after so many generated ones.

        found: what `forward` gives, for one sequence
        """
        logits, token, extent = found
        ranges = [logit_range(extent, position, logits.shape[-1])]
        if isinstance(logits, np.ndarray):
            logits, token = logits.copy(), token.copy()  # the next step overwrites them
        if self.seen is not None:
            self.seen.cut(generated)  # a choice that was interrupted may have been added
            for process in self.processors:
                logits = processed(process, self.seen.ids, logits)
                if logits.shape != found[0].shape:
                    expected = tuple(found[0].shape)
                    raise ValueError(f"a processor gave {tuple(logits.shape)}, expected {expected}")
        if self.follower is not None:
            logits = constrained(logits, self.follower, is_lazy=ops.is_lazy())
        if self.seen is not None or self.follower is not None:
            logits = mx.array(logits) if ops.is_lazy() else np.asarray(logits)
            token, extent = best(logits)
            ranges.append(logit_range(extent, position, logits.shape[-1], processed=True))
        is_greedy = self.sampler is greedy
        if not is_greedy:
            logits = at_hand(log_softmax(logits))
            if isinstance(self.sampler, Drawing):
                self.sampler.seek(position)
            token = at_hand(tokens(self.sampler(mx.array(logits)))).reshape(-1)
            if len(token) != 1:
                raise ValueError(f"the sampler gave {len(token)} tokens for 1 text")
        seen = () if self.seen is None else (self.seen.add(token),)
        # nothing stays lazy that the next step needs: another thread may ask for it
        pending = (token, logits, *seen, *(x.extent for x in ranges))
        lazy = [x for x in pending if isinstance(x, mx.array)]
        return Choice(token, logits, ranges, lazy, is_normalized=not is_greedy)


def processed(process: Processor, seen: Array, logits: Array) -> Array:
    """What a processor makes of logits (n, vocab) after the tokens `seen`; one from outside gets MLX's arrays."""
    if isinstance(process, Own):
        is_ours = ops.is_lazy() or isinstance(logits, np.ndarray)
        return process(seen, logits if is_ours else np.array(logits))
    return process(mx.array(seen), mx.array(logits))


class Seen:
    """The tokens so far, `ids` (n,) uint32: MLX's on a lazy backend, else NumPy's."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: Array = (
            mx.array(list(ids), mx.uint32) if ops.is_lazy() else np.array(ids, np.uint32)
        )
        self._room = self.ids
        self._given = len(self.ids)

    def cut(self, count: int) -> None:
        """Forget all but the first `count` tokens that were added."""
        if len(self.ids) != self._given + count:
            self.ids = self.ids[: self._given + count]

    def force(self, tokens: Sequence[int], generated: int) -> None:
        """Append known tokens behind the first `generated` ones."""
        self.cut(generated)
        for token in tokens:
            self.add(np.array([token], np.uint32))

    def add(self, token: Array) -> Array:
        """Append a token (1,); returns all ids."""
        if isinstance(self.ids, mx.array):
            self.ids = mx.concatenate([self.ids, tokens(token)])
            return self.ids
        count = len(self.ids)
        if count == len(self._room):
            self._room = np.concatenate([self.ids, np.zeros(count + 64, np.uint32)])
        self._room[count] = token[0]  # behind what earlier ids show
        self.ids = self._room[: count + 1]
        return self.ids


def check_sampler(sampler: Sampler | None) -> Sampler:
    """The sampler, greedy for None. Raises ValueError unless it can be called."""
    sampler = greedy if sampler is None else sampler
    if not callable(sampler):
        raise ValueError(f"sampler is {short(sampler)}, expected a function, as of make_sampler")
    return sampler


def forward(model: LanguageModel) -> Forward:
    """A batch of s sequences -> logits (s, vocab) after their last rows, the likeliest tokens (s,), and ranges (s, 2).

    The last two are those of `ops.choose`. What it returns lasts until the next call.
    """

    def run(batch: Batch) -> Found:
        logits = model.scores(batch.last(model.body(batch)))
        return (logits, *ops.choose(logits))

    return ops.repeated(run)


def given_processors(processors: Sequence[Processor] | None) -> list[Processor]:
    """The processors as a list, empty for None. Raises ValueError unless all can be called."""
    if processors is None:
        return []
    if not isinstance(processors, Iterable):
        raise ValueError(f"logits_processors is {short(processors)}, expected a list of functions")
    found = list(processors)
    for process in found:
        if not callable(process):
            raise ValueError(f"logits_processors has {short(process)}, expected functions")
    return found
