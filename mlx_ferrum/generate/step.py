"""The token loop: prompt ids in, (token, log-probabilities) out. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.cache import Cache, check_caches, even
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, greedy, log_softmax
from mlx_ferrum.sample.arrays import at_hand, tokens
from mlx_ferrum.sample.checks import check_integer

from .logits import LogitRange, logit_range
from .wired import wired

Progress = Callable[[int, int], None]


def generate_step(
    prompt: Sequence[int] | mx.array,
    model: LanguageModel,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Processor] | None = None,
    cache: list[Cache] | None = None,
    prompt_cache: list[Cache] | None = None,
    history: Sequence[int] = (),
    prefill_step_size: int = 512,
    progress: Progress | None = None,
) -> Generator[tuple[int, mx.array], None, None]:
    """Generate tokens after `prompt`, which continues whatever `cache` holds.

    Args:
        prompt: token ids (n,), at least one.
        model: from `load`.
        max_tokens: how many to generate at most; -1 for as many as the context has room for.
        sampler: log-probabilities (1, vocab) to token (1,); greedy by default.
        logits_processors: applied in order before the log-probabilities are taken.
        cache: from `model.make_cache()`, updated in place; a new one by default. When the n-th
            token is handed out it holds the prompt and n - 1 tokens; on a lazy backend the n-th
            too, unless that is the last one. After an interruption, all layers hold the same positions.
        prompt_cache: another name for `cache`, as in mlx-lm.
        history: the tokens that `cache` holds; only the processors read them.
        prefill_step_size: prompt tokens per forward pass.
        progress: called with (prompt tokens done, all prompt tokens), first and after each pass.

    Yields:
        (token, logprobs): logprobs is (vocab,) float32, after the processors, before the sampler.
        On a lazy backend (`ops.is_lazy`) the next step is under way then.

    Raises:
        ValueError: at the call, when an argument is bad or the prompt does not fit; later, when
            the prompt has an id outside the vocabulary, the model's file changes meanwhile, or no
            token can be chosen from the logits (NaN, infinite, all equal).
    """
    tokens = token_ids(prompt)
    cache = given_cache(model, cache, prompt_cache)
    limit = token_limit(model, cache, tokens, max_tokens)
    check_integer("prefill_step_size", prefill_step_size, 1)
    sampler = greedy if sampler is None else sampler
    if not callable(sampler):
        raise ValueError(f"sampler is {_short(sampler)}, expected a function, as of make_sampler")
    processors = given_processors(logits_processors)
    choose = _Chooser(model, sampler, processors, seen=[*history, *tokens])
    steps = _steps(
        tokens, model, cache, choose, limit, size=prefill_step_size, progress=progress or _ignore
    )
    return wired(model, _even(steps, cache))


def token_ids(prompt: Sequence[int] | mx.array) -> list[int]:
    """Token ids (n,) as plain numbers. Raises ValueError for another shape or type."""
    try:
        ids = np.asarray(prompt)
    except (ValueError, RuntimeError):  # lists of different lengths; a type that NumPy lacks
        raise ValueError(f"token ids are {_short(prompt)}, expected integers (n,)") from None
    if ids.ndim == 0:
        raise ValueError(f"token ids are {_short(prompt)}, expected integers (n,)")
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"token ids are {ids.dtype} {ids.shape}, expected integers (n,)")
    return [int(token) for token in ids]


def given_cache(
    model: LanguageModel, cache: list[Cache] | None, prompt_cache: list[Cache] | None
) -> list[Cache]:
    """The caches that the caller gave under either name, or new ones.

    Raises:
        ValueError: both are given, or they are not caches of `model`.
    """
    if cache is not None and prompt_cache is not None:
        raise ValueError("cache and prompt_cache are the same argument, expected one of them")
    given = prompt_cache if cache is None else cache
    if given is None:
        return model.make_cache()
    check_caches(given, model)
    return given


def given_processors(processors: Sequence[Processor] | None) -> list[Processor]:
    """The processors as a list, empty for None. Raises ValueError unless all can be called."""
    if processors is None:
        return []
    if not isinstance(processors, Iterable):
        raise ValueError(f"logits_processors is {_short(processors)}, expected a list of functions")
    found = list(processors)
    for process in found:
        if not callable(process):
            raise ValueError(f"logits_processors has {_short(process)}, expected functions")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def token_limit(
    model: LanguageModel, cache: list[Cache], prompt: Sequence[int], max_tokens: int
) -> int:
    """How many tokens can be generated: `max_tokens`, or fewer where the context ends.

    Raises:
        ValueError: `prompt` is empty or leaves no room for one token.
    """
    check_integer("max_tokens", max_tokens, -1)
    if max_tokens == 0:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1, or -1 for no limit")
    if not prompt:
        raise ValueError("the prompt is empty (0 tokens), expected at least one")
    held = cache[0].offset if cache else 0
    context = model.args.context_length
    room = context - held - len(prompt)
    if room < 1:
        before = f" after {held} in the cache" if held else ""
        raise ValueError(
            f"the prompt has {len(prompt)} tokens{before}, which leaves no room for a "
            f"reply in the model's context of {context} tokens"
        )
    return room if max_tokens == -1 else min(room, max_tokens)


@dataclass(frozen=True)
class _Choice:
    """A step's token (1,) and what `_Chooser.logprobs` reads, (1, vocab); not yet computed on a lazy backend."""

    token: mx.array
    scores: mx.array
    ranges: list[LogitRange]

    def value(self) -> int:
        """The token's id. Raises ValueError if the logits were not such that one could be chosen."""
        for found in self.ranges:
            found.check()
        (value,) = token_ids(self.token)
        return value


class _Chooser:
    """Picks the next token from hidden states; remembers the tokens when a processor wants them."""

    def __init__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        processors: Sequence[Processor],
        *,
        seen: list[int],
    ) -> None:
        self.model, self.sampler, self.processors = model, sampler, processors
        self.seen = mx.array(seen, mx.uint32)

    def __call__(self, hidden: mx.array, position: int) -> _Choice:
        """hidden: (1, n, hidden), whose last position is followed by `position`."""
        logits = self.model.head(hidden[:, -1])  # (1, vocab)
        ranges = [logit_range(logits, position)]
        for process in self.processors:
            logits = process(self.seen, logits)
        if self.processors:
            ranges.append(logit_range(logits, position, processed=True))
        token, scores = self._sample(logits)
        if self.processors:
            self.seen = mx.concatenate([self.seen, token])
        # nothing stays lazy that the next step needs: another thread may ask for it
        mx.async_eval(token, scores, self.seen, *(x for found in ranges for x in found.pending))
        return _Choice(token, scores, ranges)

    def logprobs(self, choice: _Choice) -> mx.array:
        """Log-probabilities (vocab,), lazy, so they are made in the thread that they are for."""
        scores = choice.scores
        return (log_softmax(scores) if self.sampler is greedy else scores)[0]

    def _sample(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """The next token (1,), and log-probabilities (1, vocab); greedy does without their sum and keeps logits."""
        if self.sampler is greedy:
            return greedy(logits), logits
        logprobs = mx.array(log_softmax(at_hand(logits)))
        return tokens(self.sampler(logprobs)), logprobs


def _steps(
    tokens: list[int],
    model: LanguageModel,
    cache: list[Cache],
    choose: _Chooser,
    limit: int,
    *,
    size: int,
    progress: Progress,
) -> Generator[tuple[int, mx.array], None, None]:
    check = model.check_file or _unchanged
    progress(0, len(tokens))
    check()
    for done in range(size, len(tokens), size):
        model.body(mx.array([tokens[done - size : done]], mx.uint32), cache)
        mx.eval([c.state for c in cache])
        mx.clear_cache()  # a chunk's buffers seldom fit the next one, whose attention is longer
        progress(done, len(tokens))
        check(thorough=False)
    rest = tokens[(len(tokens) - 1) // size * size :]
    hidden = model.body(mx.array([rest], mx.uint32), cache)
    position = cache[0].offset
    choice = choose(hidden, position)
    step = ops.stepper(model.body, cache)
    ahead, value = None, -1
    for count in range(1, limit + 1):
        check(thorough=False)
        if ahead is not None:
            choice = ahead
        elif count > 1:
            # made of the number: any operation on the array would have to be waited for
            choice = choose(step(mx.array([[value]], mx.uint32)), position + count - 1)
        # a lazy backend works on the next step while the caller looks at this one
        works_ahead = ops.is_lazy() and count < limit
        ahead = choose(step(choice.token[None]), position + count) if works_ahead else None
        value = choice.value()
        if count == 1:
            progress(len(tokens), len(tokens))
        yield value, choose.logprobs(choice)


def _even(
    steps: Generator[tuple[int, mx.array], None, None], cache: list[Cache]
) -> Generator[tuple[int, mx.array], None, None]:
    """The steps; if one is interrupted, all layers still hold the same positions."""
    with even(cache):
        yield from steps


def _unchanged(*, thorough: bool = True) -> None:
    """The check of a model that comes from no file."""


def _ignore(done: int, total: int) -> None:
    """The progress callback of a caller that gave none."""
