"""What a user asks of the engine, and what comes back."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import mlx.core as mx
import numpy as np

from mlx_ferrum.sample import Processor, Sampler, bias
from mlx_ferrum.sample.checks import check_integer
from mlx_ferrum.sample.samplers import make_drawing

from .choosing import Choice, check_sampler, given_processors
from .constraint import Constraint


@dataclass(eq=False)
class Request:
    """A prompt, and how it goes on.

    prompt: token ids, at least one
    limit: how many tokens to generate at most
    sampler: arguments of `make_sampler`, from which each text gets a sampler of its own, so that with a seed its draws
        depend on nothing but the seed and the position; or a sampler, which all texts that have it share
    processors: as of `mlx_ferrum.sample`; they get the tokens so far and logits (1, vocab)
    bias: token id to what is added to its logit
    end_tokens: the text ends with one of them
    ignore_eos: never choose one of them
    ends: called with each token, once; whether the text ends with it. It should be quick: Ctrl-C waits for it
    constraint: says which tokens may come next, as of `mlx_ferrum.structured`; each text follows it by itself. Tokens
        that have no alternative are not computed one by one, unless logprobs are asked for. Not with ignore_eos
    priority: higher ones go first
    logprobs: whether events have the log-probabilities
    history: tokens before the prompt that processors are told of too, where the text goes on from a past
    Raises ValueError for bad arguments.
    """

    prompt: Sequence[int]
    limit: int
    sampler: Mapping[str, Any] | Sampler = field(default_factory=dict)
    processors: Sequence[Processor] = ()
    bias: Mapping[int, float] | None = None
    end_tokens: Collection[int] = ()
    ignore_eos: bool = False
    ends: Callable[[int], bool] | None = None
    constraint: Constraint | None = None
    priority: int = 0
    logprobs: bool = False
    history: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_integer("limit", self.limit, 1)
        check_integer("priority", self.priority, -(2**31), 2**31)
        if not len(self.prompt):
            raise ValueError("the prompt is empty (0 tokens), expected at least one")
        self.prompt, self.history = _ids("the prompt", self.prompt), _ids("history", self.history)
        if self.ignore_eos and self.constraint is not None:
            raise ValueError("ignore_eos with a constraint, whose end no token could then say")
        self.make_sampler(0)
        self.make_processors()

    def make_sampler(self, index: int) -> Sampler:
        """The sampler of continuation `index`. The first one draws as the only one of a request would."""
        if isinstance(self.sampler, Mapping):
            options = dict(self.sampler)
            return make_drawing(**options | {"seed": mixed_seed(options.get("seed"), index)})
        return check_sampler(self.sampler)

    def make_processors(self) -> list[Processor]:
        """All that changes logits, in order."""
        biases = [bias(self.bias)] if self.bias else []
        if self.ignore_eos and self.end_tokens:
            biases.append(bias(dict.fromkeys(self.end_tokens, -np.inf)))
        return [*biases, *given_processors(self.processors)]

    def stops(self, token: int) -> bool:
        """Whether the text ends with this token."""
        is_end = token in self.end_tokens
        return (self.ends is not None and self.ends(token)) or is_end


def _ids(what: str, tokens: Any) -> list[int]:
    """Token ids as plain numbers."""
    ids: list[Any] = list(np.asarray(tokens) if isinstance(tokens, mx.array) else tokens)
    for token in ids:
        if type(token) is bool or not isinstance(token, SupportsIndex):
            raise ValueError(f"{what} has {token!r}, expected token ids")
    return [operator.index(token) for token in ids]


def mixed_seed(seed: int | None, index: int) -> int | None:
    """The seed of text `index` of several that have one seed; the first one has the seed itself."""
    if seed is None or not index:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class Event:
    """A token more of a text, or its end.

    id: of the text, as `submit` gave it
    token: None if the text ended without one
    finish_reason: "stop", "length", "cancelled" or "error" with the last event of a text, else None
    error: what was raised, after "error"
    choice: gives `logprobs()` (vocab,), after the processors and before the sampler, if they were asked for
    hits: positions of the prompt that did not have to be computed, because the pool had them
    """

    id: int
    token: int | None = None
    finish_reason: str | None = None
    error: Exception | None = None
    choice: Choice | None = field(default=None, repr=False)
    hits: int = 0
