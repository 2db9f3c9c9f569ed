"""The token loop: prompt ids in, (token, log-probabilities) out. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum.cache import Cache, check_cache
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.engine.choosing import Choice, check_sampler, given_processors
from mlx_ferrum.engine.constraint import Constraint
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler
from mlx_ferrum.sample.checks import check_integer, short

from .wired import wired

Progress = Callable[[int, int], None]


def generate_choices(
    prompt: Sequence[int] | mx.array,
    model: LanguageModel,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    constraint: Constraint | None = None,
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
        constraint: says which tokens may come next; the text ends when nothing can follow.
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
    request = Request(
        tokens,
        limit,
        check_sampler(sampler),
        given_processors(logits_processors),
        constraint=constraint,
        history=history,
        logprobs=True,
    )
    steps = _choices(model, cache, request, prefill_step_size, progress or _ignore)
    return wired(model, steps)


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


def _choices(
    model: LanguageModel, cache: Cache, request: Request, size: int, progress: Progress
) -> Generator[Choice, None, None]:
    """The choices of a request after what a cache of one text holds."""
    states, length, done = cache.start(), len(request.prompt), 0
    if not cache.sequences:
        cache.sequences = [states.begin()]
    if len(cache.sequences) > 1:
        raise ValueError(f"the cache holds {len(cache.sequences)} sequences, expected one")
    cache.settle()
    (past,) = cache.sequences
    start = past.position
    progress(0, length)
    if model.check_file is not None:
        model.check_file()
    engine = Engine(model, states=states, chunk=size, chunk_beside=size)
    try:
        engine.submit(request, past=past)
        while engine.is_busy:
            for event in engine.step():
                if event.error is not None:
                    raise event.error
                if done < length:
                    progress(length, length)
                    done = length
                assert event.choice is not None
                yield event.choice
            if done < past.position - start < length:
                done = past.position - start
                progress(done, length)
    finally:
        engine.close()
        cache.settle()  # a row may be computed whose token nobody saw


def _ignore(done: int, total: int) -> None:
    """The progress callback of a caller that gave none."""
