"""The token loop: prompt ids in, (token, log-probabilities) out. It knows no text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops
from mlx_ferrum.cache import Cache
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, greedy, log_softmax
from mlx_ferrum.sample.arrays import at_hand, tokens

Progress = Callable[[int, int], None]


def generate_step(
    prompt: Sequence[int] | mx.array,
    model: LanguageModel,
    *,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Processor] = (),
    cache: list[Cache] | None = None,
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
            too, unless that is the last one.
        history: the tokens that `cache` holds; only the processors read them.
        prefill_step_size: prompt tokens per forward pass.
        progress: called with (prompt tokens done, all prompt tokens), first and after each pass.

    Yields:
        (token, logprobs): logprobs is (vocab,) float32, after the processors, before the sampler.
        On a lazy backend (`ops.is_lazy`) the next step is under way then.

    Raises:
        ValueError: at the call, when the prompt is empty or does not fit; later, from the model,
            when it has an id outside the vocabulary.
    """
    tokens = token_ids(prompt)
    cache = model.make_cache() if cache is None else cache
    limit = token_limit(model, cache, tokens, max_tokens)
    if prefill_step_size < 1:
        raise ValueError(f"prefill_step_size is {prefill_step_size}, expected at least 1")
    choose = _Chooser(model, sampler or greedy, logits_processors, [*history, *tokens])
    return _steps(
        tokens, model, cache, choose, limit, size=prefill_step_size, progress=progress or _ignore
    )


def token_ids(prompt: Sequence[int] | mx.array) -> list[int]:
    """Token ids (n,) as plain numbers. Raises ValueError for another shape or type."""
    ids = np.asarray(prompt)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(f"token ids are {ids.dtype} {ids.shape}, expected integers (n,)")
    return [int(token) for token in ids]


def token_limit(
    model: LanguageModel, cache: list[Cache], prompt: Sequence[int], max_tokens: int
) -> int:
    """How many tokens can be generated: `max_tokens`, or fewer where the context ends.

    Raises:
        ValueError: `prompt` is empty or leaves no room for one token.
    """
    if max_tokens != -1 and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1, or -1 for no limit")
    if not prompt:
        raise ValueError("the prompt is empty (0 tokens), expected at least one")
    held = cache[0].offset if cache else 0
    context = model.args.context_length
    room = context - held - len(prompt)
    if room < 1:
        before = f" after {held} in the cache" if held else ""
        raise ValueError(
            f"the prompt has {len(prompt)} tokens{before}; with at least one to generate that does "
            f"not fit the model's context of {context} tokens"
        )
    return room if max_tokens == -1 else min(room, max_tokens)


class _Chooser:
    """Picks the next token from hidden states; remembers the tokens when a processor wants them."""

    def __init__(
        self,
        model: LanguageModel,
        sampler: Sampler,
        processors: Sequence[Processor],
        seen: list[int],
    ) -> None:
        self.model, self.sampler, self.processors = model, sampler, processors
        self.seen = mx.array(seen, mx.uint32)

    def __call__(self, hidden: mx.array) -> tuple[mx.array, mx.array]:
        """hidden: (1, n, hidden) -> token (1,), logprobs (vocab,), both for the last position."""
        logits = self.model.head(hidden[:, -1])  # (1, vocab)
        for process in self.processors:
            logits = process(self.seen, logits)
        token, logprobs = self._sample(logits)
        if self.processors:
            self.seen = mx.concatenate([self.seen, token])
        mx.async_eval(token)
        return token, logprobs[0]

    def _sample(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """The next token (1,) and log-probabilities (1, vocab), a sum over the vocabulary that greedy does without."""
        if self.sampler is greedy:
            return greedy(logits), log_softmax(logits)
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
    progress(0, len(tokens))
    for done in range(size, len(tokens), size):
        model.body(mx.array([tokens[done - size : done]], mx.uint32), cache)
        mx.eval([c.state for c in cache])
        mx.clear_cache()  # a chunk's buffers seldom fit the next one, whose attention is longer
        progress(done, len(tokens))
    rest = tokens[(len(tokens) - 1) // size * size :]
    token, logprobs = choose(model.body(mx.array([rest], mx.uint32), cache))
    step = ops.stepper(model.body, cache)
    ahead, value = None, -1
    for count in range(1, limit + 1):
        if ahead is not None:
            token, logprobs = ahead
        elif count > 1:
            # made of the number: any operation on the array would have to be waited for
            token, logprobs = choose(step(mx.array([[value]], mx.uint32)))
        # a lazy backend works on the next step while the caller looks at this one
        ahead = choose(step(token[None])) if ops.is_lazy() and count < limit else None
        (value,) = token_ids(token)
        if count == 1:
            progress(len(tokens), len(tokens))
        yield value, logprobs


def _ignore(done: int, total: int) -> None:
    """The progress callback of whoever gave none."""
