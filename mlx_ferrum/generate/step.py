"""The token loop: prompt ids in, (token, log-probabilities) out. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.batch import Batch
from mlx_ferrum.cache import Cache, check_cache
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, greedy, log_softmax
from mlx_ferrum.sample.arrays import Array, at_hand, best, tokens
from mlx_ferrum.sample.checks import check_integer
from mlx_ferrum.sample.processors import Own

from .logits import LogitRange, logit_range
from .wired import wired

Progress = Callable[[int, int], None]
Forward = Callable[[Batch], tuple[Array, Array, Array]]


def generate_choices(
    prompt: Sequence[int] | mx.array,
    model: LanguageModel,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Processor] | None = None,
    cache: Cache | None = None,
    prompt_cache: Cache | None = None,
    history: Sequence[int] = (),
    prefill_step_size: int = 512,
    progress: Progress | None = None,
) -> Generator[Choice, None, None]:
    """Generate tokens after `prompt`, which continues whatever `cache` holds.

    Args:
        prompt: token ids (n,), at least one.
        model: from `load`.
        max_tokens: how many to generate at most; -1 for as many as the context has room for.
        sampler: log-probabilities (1, vocab) to token (1,); greedy by default.
        logits_processors: applied in order before the log-probabilities are taken.
        cache: from `model.make_cache()`, updated in place; a new one by default. When the n-th
            token is handed out it holds the prompt and n - 1 tokens; on a lazy backend the n-th
            too, unless that is the last one.
        prompt_cache: another name for `cache`, as in mlx-lm.
        history: the tokens that `cache` holds; only the processors read them.
        prefill_step_size: prompt tokens per forward pass.
        progress: called with (prompt tokens done, all prompt tokens), first and after each pass.

    Yields:
        The choice of each token. On a lazy backend (`ops.is_lazy`) the next step is under way then.

    Raises:
        ValueError: at the call, when an argument is bad or the prompt does not fit; later, when
            the prompt has an id outside the vocabulary, the model's file changes meanwhile, or no
            token can be chosen from the logits (NaN, infinite, all equal).
    """
    tokens = token_ids(prompt)
    cache = given_cache(model, cache, prompt_cache)
    limit = token_limit(model, cache.offset, tokens, max_tokens)
    check_integer("prefill_step_size", prefill_step_size, 1)
    choose = make_chooser(sampler, logits_processors, [*history, *tokens])
    steps = _steps(
        tokens, model, cache, choose, limit, size=prefill_step_size, progress=progress or _ignore
    )
    return wired(model, _settled(steps, cache))


def generate_step(
    prompt: Sequence[int] | mx.array, model: LanguageModel, **options: Any
) -> Generator[tuple[int, mx.array], None, None]:
    """As `generate_choices`, of which it takes all arguments, but gives plain numbers.

    Yields:
        (token, logprobs): logprobs is (vocab,) float32, after the processors, before the sampler.
    """
    return (
        (choice.value, choice.logprobs()) for choice in generate_choices(prompt, model, **options)
    )


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


def given_cache(model: LanguageModel, cache: Cache | None, prompt_cache: Cache | None) -> Cache:
    """The cache that the caller gave under either name, or a new one.

    Raises:
        ValueError: both are given, or it is no cache of `model`.
    """
    if cache is not None and prompt_cache is not None:
        raise ValueError("cache and prompt_cache are the same argument, expected one of them")
    given = prompt_cache if cache is None else cache
    if given is None:
        return model.make_cache()
    check_cache(given, model)
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


def token_limit(model: LanguageModel, held: int, prompt: Sequence[int], max_tokens: int) -> int:
    """How many tokens can be generated: `max_tokens`, or fewer where the context ends.

    held: tokens before the prompt

    Raises:
        ValueError: `prompt` is empty or leaves no room for one token.
    """
    check_integer("max_tokens", max_tokens, -1)
    if max_tokens == 0:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1, or -1 for no limit")
    if not prompt:
        raise ValueError("the prompt is empty (0 tokens), expected at least one")
    context = model.args.context_length
    room = context - held - len(prompt)
    if room < 1:
        before = f" after {held} in the cache" if held else ""
        raise ValueError(
            f"the prompt has {len(prompt)} tokens{before}, which leaves no room for a "
            f"reply in the model's context of {context} tokens"
        )
    return room if max_tokens == -1 else min(room, max_tokens)


class Choice:
    """A step's token, and the logits that it was chosen from; not yet computed on a lazy backend.

    token: (1,) ids
    scores: (1, vocab), logits or, where `is_normalized`, log-probabilities
    """

    def __init__(
        self, token: Array, scores: Array, ranges: list[LogitRange], *, is_normalized: bool
    ) -> None:
        self.token, self.scores, self._ranges = token, scores, ranges
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
    """Picks the next token from logits; remembers the tokens when a processor wants them."""

    def __init__(self, sampler: Sampler, processors: Sequence[Processor], seen: list[int]) -> None:
        self.sampler, self.processors = sampler, processors
        self.seen = Seen(seen) if processors else None

    def __call__(self, found: tuple[Array, Array, Array], position: int) -> Choice:
        """The token at `position`; found: what `forward` gives, for one sequence."""
        logits, token, extent = found
        ranges = [logit_range(extent, position, logits.shape[-1])]
        if isinstance(logits, np.ndarray):
            logits, token = logits.copy(), token.copy()  # the next step overwrites them
        if self.seen is not None:
            for process in self.processors:
                logits = processed(process, self.seen.ids, logits)
            logits = at_hand(logits)
            token, extent = best(logits)
            ranges.append(logit_range(extent, position, logits.shape[-1], processed=True))
        is_greedy = self.sampler is greedy
        if not is_greedy:
            logits = at_hand(log_softmax(logits))
            token = at_hand(tokens(self.sampler(mx.array(logits))))
        seen = () if self.seen is None else (self.seen.add(token),)
        # nothing stays lazy that the next step needs: another thread may ask for it
        pending = (token, logits, *seen, *(x.extent for x in ranges))
        if lazy := [x for x in pending if isinstance(x, mx.array)]:
            mx.async_eval(lazy)
        return Choice(token, logits, ranges, is_normalized=not is_greedy)


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


def make_chooser(
    sampler: Sampler | None, logits_processors: Sequence[Processor] | None, seen: list[int]
) -> Chooser:
    """A chooser after the tokens `seen`. Raises ValueError unless sampler and processors can be called."""
    return Chooser(check_sampler(sampler), given_processors(logits_processors), seen)


def check_sampler(sampler: Sampler | None) -> Sampler:
    """The sampler, greedy for None. Raises ValueError unless it can be called."""
    sampler = greedy if sampler is None else sampler
    if not callable(sampler):
        raise ValueError(f"sampler is {_short(sampler)}, expected a function, as of make_sampler")
    return sampler


def forward(model: LanguageModel) -> Forward:
    """A batch of s sequences -> logits (s, vocab) after their last rows, the likeliest tokens (s,), and ranges (s, 2).

    The last two are those of `ops.choose`. What it returns lasts until the next call.
    """

    def run(batch: Batch) -> tuple[Array, Array, Array]:
        logits = model.scores(batch.last(model.body(batch)))
        return (logits, *ops.choose(logits))

    return ops.repeated(run)


def _steps(
    prompt: list[int],
    model: LanguageModel,
    cache: Cache,
    choose: Chooser,
    limit: int,
    *,
    size: int,
    progress: Progress,
) -> Generator[Choice, None, None]:
    check = model.check_file or _unchanged
    progress(0, len(prompt))
    check()
    for done in range(size, len(prompt), size):
        _prefill(model, cache, prompt[done - size : done])
        progress(done, len(prompt))
        check(thorough=False)
    step = forward(model)
    rest = np.array([prompt[(len(prompt) - 1) // size * size :]])
    choice = choose(_advanced(step, cache, rest), cache.offset)
    for count in range(1, limit + 1):
        check(thorough=False)
        works_ahead = ops.is_lazy() and count < limit
        # a lazy backend works on the next step while the caller looks at this one
        ahead = (
            choose(_advanced(step, cache, choice.token[None]), cache.offset)
            if works_ahead
            else None
        )
        value = choice.value
        if works_ahead:
            cache.note([[value]])
        if count == 1:
            progress(len(prompt), len(prompt))
        yield choice
        if ahead is not None:
            choice = ahead
        elif count < limit:
            check(thorough=False)  # the caller may have taken its time
            choice = choose(_advanced(step, cache, np.array([[value]])), cache.offset)


def _prefill(model: LanguageModel, cache: Cache, tokens: list[int]) -> None:
    """Read tokens whose logits nobody wants."""
    batch = cache.batch(np.array([tokens]))
    model.body(batch)
    if ops.is_lazy():
        mx.eval(cache.arrays)
        mx.clear_cache()  # a chunk's buffers seldom fit the next one, whose attention is longer
    batch.advance()


def _advanced(step: Forward, cache: Cache, tokens: Array) -> tuple[Array, Array, Array]:
    """What `forward` gives for the next tokens (1, l), which the cache then holds."""
    batch = cache.batch(tokens)
    found = step(batch)
    batch.advance()
    return found


def _settled(steps: Generator[Choice, None, None], cache: Cache) -> Generator[Choice, None, None]:
    """The steps; if they end early, the cache holds only positions whose tokens are known."""
    try:
        yield from steps
    finally:
        cache.settle()


def _unchanged(*, thorough: bool = True) -> None:
    """The check of a model that comes from no file."""


def _ignore(done: int, total: int) -> None:
    """The progress callback of a caller that gave none."""
