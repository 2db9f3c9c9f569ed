"""Text after many prompts at once: `batch_generate`, a user of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from mlx_ferrum import progress
from mlx_ferrum.engine import Engine, Request
from mlx_ferrum.engine.choosing import check_sampler, given_processors
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler
from mlx_ferrum.sample.checks import check_integer
from mlx_ferrum.tokenizer import Tokenizer

from .prompt import Prompt, encode_prompt
from .step import token_limit
from .stops import StopStrings
from .stream import Text, biases, check_ids, peak_memory
from .wired import resident


@dataclass
class BatchStats:
    """Figures of a `batch_generate`, summed over all prompts.

    prompt_tokens: all tokens of the prompts, also those that a prompt before had in common
    prompt_time: seconds until the first token of each text is there
    generation_tokens: tokens of all texts
    generation_time: seconds from the first token of any text to the end; prompts may still be read meanwhile
    prompt_tps: tokens of prompts per second of prompt_time
    generation_tps: tokens but the first of each text per second of generation_time
    peak_memory: GB
    """

    prompt_tokens: int
    prompt_time: float
    prompt_tps: float
    generation_tokens: int
    generation_time: float
    generation_tps: float
    peak_memory: float


@dataclass
class BatchResponse:
    """What `batch_generate` gives, in the order of the prompts.

    texts: without end tokens and stop strings
    tokens: ids, with the end token
    finish_reasons: "stop" (end token or stop string) or "length"
    """

    texts: list[str]
    tokens: list[list[int]] = field(repr=False)
    finish_reasons: list[str]
    stats: BatchStats


def batch_generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt],
    max_tokens: int | Sequence[int] = 128,
    *,
    sampler: Sampler | None = None,
    logits_processors: Sequence[Processor] | None = None,
    logit_bias: Mapping[int, float] | None = None,
    stop: str | Sequence[str] | None = None,
    ignore_eos: bool = False,
    kv_bits: int = 16,
    prefill_step_size: int = 512,
    verbose: bool = False,
) -> BatchResponse:
    """Generate text after each of `prompts`, all at once; a text leaves the batch when it ends.

    Args:
        model: from `load`.
        tokenizer: from `load`.
        prompts: each as of `stream_generate`. What prompts begin with in common is computed once.
        max_tokens: of each text, or one number for each prompt.
        sampler: log-probabilities (1, vocab) to a token (1,), for one text after the other; greedy by default.
        logits_processors: called for each text by itself, with its tokens and logits (1, vocab).
        logit_bias: token id to what is added to its logit.
        stop: a text ends before the first of these strings.
        ignore_eos: never choose an end token.
        kv_bits: 16, or 8, which takes half the memory for keys and values and is less exact.
        prefill_step_size: prompt tokens per forward pass, of all prompts together.
        verbose: show a progress bar, and print the figures.

    Raises:
        ValueError: an argument is bad, a prompt does not fit the context, or no token can be chosen. What else a
            processor or the sampler raises.
    """
    check_integer("prefill_step_size", prefill_step_size, 1)
    chosen = check_sampler(sampler)
    processors = [
        *biases(tokenizer, logit_bias, ignore_eos),
        *given_processors(logits_processors),
    ]
    ids = _encoded(tokenizer, prompts)
    limits = _limits(model, ids, max_tokens)
    texts = [
        _Text(Text(tokenizer, StopStrings(stop), prompt), limit)
        for prompt, limit in zip(ids, limits, strict=True)
    ]
    requests = [
        Request(prompt, limit, chosen, processors, ends=text.add)
        for prompt, limit, text in zip(ids, limits, texts, strict=True)
    ]
    size = prefill_step_size
    engine = Engine(model, kv_bits=kv_bits, chunk=size, chunk_beside=size)
    with (
        resident(model),
        progress.bar(total=sum(limits), unit="token", show=verbose) as bar,
        closing(engine),
    ):
        stats = _run(engine, requests, texts, bar.update)
    if verbose:
        print(*_figures(stats), sep="\n")
    reasons = [text.reason for text in texts]
    return BatchResponse([text.text for text in texts], [t.tokens for t in texts], reasons, stats)


def _encoded(tokenizer: Tokenizer, prompts: Iterable[Prompt]) -> list[list[int]]:
    """The ids of each prompt."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Iterable):
        raise ValueError(f"prompts is a {type(prompts).__name__}, expected a list of prompts")
    found = []
    for i, prompt in enumerate(prompts):
        with _naming(f"prompt {i}"):
            ids = encode_prompt(tokenizer, prompt)
            check_ids("the prompt", ids, tokenizer.vocab_size)
            found.append(ids)
    return found


def _limits(
    model: LanguageModel, prompts: list[list[int]], max_tokens: int | Sequence[int]
) -> list[int]:
    """How many tokens each text may have."""
    most = list(max_tokens) if isinstance(max_tokens, Sequence) else [max_tokens] * len(prompts)
    if len(most) != len(prompts):
        raise ValueError(f"max_tokens has {len(most)} numbers for {len(prompts)} prompts")
    limits = []
    for i, (prompt, each) in enumerate(zip(prompts, most, strict=True)):
        with _naming(f"prompt {i}"):
            limits.append(token_limit(model, 0, prompt, each))
    return limits


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors within say what they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _figures(stats: BatchStats) -> list[str]:
    return [
        f"prompts: {stats.prompt_tokens} tokens, {stats.prompt_tps:.2f} tok/s",
        f"generation: {stats.generation_tokens} tokens, {stats.generation_tps:.2f} tok/s",
        f"peak memory: {stats.peak_memory:.3f} GB",
    ]


class _Text:
    """What has become of one prompt."""

    def __init__(self, pieces: Text, limit: int) -> None:
        self._pieces, self._limit = pieces, limit
        self.tokens: list[int] = []
        self.text = self.reason = ""

    def add(self, token: int) -> bool:
        """Take the next token; whether the text ends with it."""
        self.tokens.append(token)
        is_last = len(self.tokens) == self._limit
        piece, has_stopped = self._pieces.add(token, is_last)
        self.text += piece
        return has_stopped


def _run(
    engine: Engine, requests: list[Request], texts: list[_Text], done: Callable[[int], object]
) -> BatchStats:
    """Extend all texts to their ends. done: called with each number of new tokens."""
    start = first = middle = time.perf_counter()
    for request in requests:
        engine.submit(request)
    started: set[int] = set()
    while engine.is_busy:
        events = engine.step()
        for event in events:
            if event.error is not None:
                _raise(event.id, event.error)
            texts[event.id].reason = event.finish_reason or ""
        if len(started) < len(texts):
            middle = time.perf_counter()
            first = first if started else middle
            started.update(event.id for event in events)
        done(len(events))
    end = time.perf_counter()
    read, written = sum(len(r.prompt) for r in requests), sum(len(t.tokens) for t in texts)
    seconds = [max(1e-9, span) for span in (middle - start, end - first)]
    return BatchStats(
        prompt_tokens=read,
        prompt_time=seconds[0],
        prompt_tps=read / seconds[0],
        generation_tokens=written,
        generation_time=seconds[1],
        generation_tps=(written - len(texts)) / seconds[1],
        peak_memory=peak_memory(),
    )


def _raise(index: int, error: Exception) -> NoReturn:
    """The error of one text, which says of which if it is about the numbers."""
    if isinstance(error, ValueError):
        raise ValueError(f"text {index}: {error}") from error
    raise error
