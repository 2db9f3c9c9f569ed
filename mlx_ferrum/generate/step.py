"""The token loop: prompt ids in, (token, log-probabilities) out. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.cache import Cache, check_cache
from mlx_ferrum.engine.choosing import Choice, Chooser, Forward, forward, make_chooser
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler
from mlx_ferrum.sample.arrays import Array
from mlx_ferrum.sample.checks import check_integer, short

from .wired import wired

Progress = Callable[[int, int], None]


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
        raise ValueError(f"token ids are {short(prompt)}, expected integers (n,)") from None
    if ids.ndim == 0:
        raise ValueError(f"token ids are {short(prompt)}, expected integers (n,)")
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
