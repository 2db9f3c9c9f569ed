"""From a prompt to text: `stream_generate` gives a response per token, `generate` the whole."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum.cache import Cache
from mlx_ferrum.engine.choosing import Choice, given_processors
from mlx_ferrum.engine.constraint import Constraint
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, bias
from mlx_ferrum.sample.checks import check_integer
from mlx_ferrum.tokenizer import Tokenizer

from .prompt import Prompt, encode_prompt
from .step import generate_choices, given_cache, token_ids, token_limit
from .stops import StopStrings


@dataclass(repr=False)
class GenerationResponse:
    """One generated token and the figures so far.

    Attributes:
        text: the text that became certain with this token, often "".
        token: its id.
        top_logprobs: (id, log-probability) of the most likely tokens, as many as were asked for.
        finish_reason: "stop" (end token or stop string) or "length" (`max_tokens` or the context's
            end) on the last response, None before.
        prompt_tokens: tokens processed as the prompt, those already in the cache not counted.
        prompt_tps: prompt tokens per second of wall time up to the first token.
        generation_tokens: tokens so far, an end token included.
        generation_tps: tokens after the first per second of wall time; 0 at the first.
        choice: what `logprobs` are made of when they are asked for.
    """

    text: str
    token: int
    top_logprobs: list[tuple[int, float]]
    finish_reason: str | None
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    choice: Choice = field(repr=False)

    @cached_property
    def logprobs(self) -> mx.array:
        """(vocab,) float32, after logit processors and before the sampler."""
        return self.choice.logprobs()

    @cached_property
    def peak_memory(self) -> float:
        """GB, the most until it is asked for: of MLX on a GPU, else of the process with its mapped weights."""
        return peak_memory()

    def __repr__(self) -> str:
        """Without the log-probabilities, which are a number for each token of the vocabulary."""
        reason = f", finish_reason={self.finish_reason!r}" if self.finish_reason else ""
        figures = f"{self.generation_tokens} tokens at {self.generation_tps:.1f} tok/s"
        return f"GenerationResponse(text={self.text!r}, token={self.token}, {figures}{reason})"


def peak_memory() -> float:
    """GB: MLX's peak on a GPU; elsewhere the process's, as the system counts it."""
    if mx.default_device() == mx.gpu:
        return mx.get_peak_memory() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def stream_generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_tokens: int = 256,
    *,
    logits_processors: Sequence[Processor] | None = None,
    logit_bias: Mapping[int, float] | None = None,
    stop: str | Sequence[str] | None = None,
    ignore_eos: bool = False,
    constraint: Constraint | None = None,
    top_logprobs: int = 0,
    cache: Cache | None = None,
    prompt_cache: Cache | None = None,
    **options: Any,
) -> Generator[GenerationResponse, None, None]:
    """Generate text after `prompt`, token by token.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompt: text, the messages of a conversation or token ids (n,), see `encode_prompt`. It
            continues what `cache` holds.
        max_tokens: at most so many tokens; -1 for as many as the context has room for.
        logits_processors: see `mlx_ferrum.sample`; applied after `logit_bias`.
        logit_bias: token id to what is added to its logit.
        stop: the text ends before the first of these strings, which may span tokens.
        ignore_eos: never choose an end token (its logit becomes -inf), so that only `stop` and
            the length end the text.
        constraint: says which tokens may come next, as of `mlx_ferrum.structured`; not with `ignore_eos`.
        top_logprobs: how many of the most likely tokens each response lists.
        cache: from `model.make_cache()`, updated in place.
        prompt_cache: another name for `cache`, as in mlx-lm.
        options: `sampler`, `history`, `prefill_step_size` and `progress` of `generate_step`. The text
            continues that of `history` and `prompt`.

    Raises:
        ValueError: at the call, when an argument is bad or the prompt does not fit the context;
            later, when no token can be chosen (`generate_step`).
    """
    ids = encode_prompt(tokenizer, prompt)
    cache = given_cache(model, cache, prompt_cache)
    limit = token_limit(model, cache.offset, ids, max_tokens)
    check_integer("top_logprobs", top_logprobs, 0, tokenizer.vocab_size)
    check_ids("the prompt", ids, tokenizer.vocab_size)
    if ignore_eos and constraint is not None:
        raise ValueError("ignore_eos with a constraint, whose end no token could then say")
    processors = [*biases(tokenizer, logit_bias, ignore_eos), *given_processors(logits_processors)]
    steps = generate_choices(
        ids,
        model,
        max_tokens=limit,
        logits_processors=processors,
        constraint=constraint,
        cache=cache,
        **options,
    )
    text = Text(tokenizer, StopStrings(stop), [*options.get("history", ()), *ids])
    return _responses(steps, text, _Clock(len(ids)), limit, top_logprobs)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    verbose: bool = False,
    **options: Any,
) -> str:
    """Generate text after `prompt` and return it; `options` are those of `stream_generate`.

    With `verbose` the text is printed as it comes, and the figures after it.
    """
    pieces = []
    for response in stream_generate(model, tokenizer, prompt, **options):
        pieces.append(response.text)
        if verbose:
            print(response.text, end="", flush=True)
    if verbose:
        print("", *figures(response), sep="\n")
    return "".join(pieces)


def figures(last: GenerationResponse) -> list[str]:
    """The figures of a finished generation, one a line, for people."""
    return [
        f"prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.2f} tok/s",
        f"generation: {last.generation_tokens} tokens, {last.generation_tps:.2f} tok/s",
        f"peak memory: {last.peak_memory:.3f} GB",
    ]


class Text:
    """Tokens to text: whole characters only, and nothing from a stop string on."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: StopStrings,
        before: Sequence[int],
        shown: Collection[str] | None = None,
    ) -> None:
        """before: the tokens that the text continues. shown: of special tokens only these are text; None: all are."""
        self._ends = tokenizer.eos_token_ids
        self._detokenizer = tokenizer.detokenizer(shown is not None, before, shown or ())
        self._stops = stops

    def add(self, token: int, last: bool) -> tuple[str, bool]:
        """The text that became certain, and whether generation stops here."""
        ended = token in self._ends
        text = "" if ended else self._stops.add(self._detokenizer.add(token))
        if ended or last:
            text += self._stops.add(self._detokenizer.finish())
            text += self._stops.finish()
        return text, ended or self._stops.found is not None


class _Clock:
    """Tokens per second; the first token's time counts as the prompt's."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.prompt_tps = self.generation_tps = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def tick(self, count: int) -> None:
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        if count == 1:
            self.prompt_tps = self.prompt_tokens / elapsed
            self.start()
        else:
            self.generation_tps = (count - 1) / elapsed


def _responses(
    steps: Generator[Choice, None, None],
    text: Text,
    clock: _Clock,
    limit: int,
    top: int,
) -> Generator[GenerationResponse, None, None]:
    clock.start()
    for count, choice in enumerate(steps, 1):
        clock.tick(count)
        token = choice.value
        piece, stopped = text.add(token, last=count == limit or choice.is_end)
        reason = "stop" if stopped or choice.is_end else "length" if count == limit else None
        yield GenerationResponse(
            text=piece,
            token=token,
            top_logprobs=_most_likely(choice, top),
            finish_reason=reason,
            prompt_tokens=clock.prompt_tokens,
            prompt_tps=clock.prompt_tps,
            generation_tokens=count,
            generation_tps=clock.generation_tps,
            choice=choice,
        )
        if reason is not None:
            return


def biases(
    tokenizer: Tokenizer, logit_bias: Mapping[int, float] | None, ignore_eos: bool
) -> list[Processor]:
    """The processors for these arguments of `stream_generate`. Raises ValueError for ids outside the vocabulary."""
    found = [logit_bias] if logit_bias else []
    if ignore_eos:
        found.append(dict.fromkeys(tokenizer.eos_token_ids, -mx.inf))
    made = [*map(bias, found)]  # which checks their types
    check_ids("logit_bias", logit_bias or {}, tokenizer.vocab_size)
    return made


def check_ids(what: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raises ValueError for an id outside the vocabulary."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{what} has token {token}, expected 0 to {vocab_size - 1}")


def _most_likely(choice: Choice, count: int) -> list[tuple[int, float]]:
    if count == 0:
        return []
    logprobs = choice.logprobs()
    ids = mx.argpartition(-logprobs, kth=count - 1)[:count]
    values = [float(value) for value in np.asarray(logprobs[ids])]
    return sorted(zip(token_ids(ids), values, strict=True), key=lambda pair: (-pair[1], pair[0]))
