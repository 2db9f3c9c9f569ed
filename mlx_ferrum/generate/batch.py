"""Text after many prompts at once: `batch_generate`. A step computes one token of each text that has not ended."""

from __future__ import annotations

import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ferrum import ops, progress
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.sample import Processor, Sampler, greedy, log_softmax
from mlx_ferrum.sample.arrays import Array, at_hand, best, tokens
from mlx_ferrum.sample.checks import check_integer
from mlx_ferrum.state.model import ModelStates
from mlx_ferrum.state.sequence import Sequence as Past
from mlx_ferrum.tokenizer import Tokenizer

from .logits import logit_range
from .prompt import Prompt, encode_prompt
from .step import (
    Forward,
    check_sampler,
    forward,
    given_processors,
    processed,
    token_limit,
)
from .stops import StopStrings
from .stream import Text, biases, check_ids, peak_memory
from .wired import resident


@dataclass
class BatchStats:
    """Figures of a `batch_generate`, summed over all prompts.

    prompt_tokens: all tokens of the prompts, also those that a prompt before had in common
    prompt_time: seconds until the first token of each text is there
    generation_tokens: tokens of all texts
    generation_time: seconds for all tokens but the first of each text
    prompt_tps, generation_tps: tokens per second of these times
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
        sampler: log-probabilities (n, vocab) to tokens (n,); greedy by default.
        logits_processors: called for each text by itself, with its tokens and logits (1, vocab).
        logit_bias: token id to what is added to its logit.
        stop: a text ends before the first of these strings.
        ignore_eos: never choose an end token.
        kv_bits: 16, or 8, which takes half the memory for keys and values and is less exact.
        prefill_step_size: prompt tokens per forward pass, of all prompts together.
        verbose: show a progress bar, and print the figures.

    Raises:
        ValueError: an argument is bad, a prompt does not fit the context, or no token can be chosen.
    """
    check_integer("prefill_step_size", prefill_step_size, 1)
    choose = _Chooser(
        check_sampler(sampler),
        biases(tokenizer, logit_bias, ignore_eos),
        given_processors(logits_processors),
    )
    ids = _encoded(tokenizer, prompts)
    limits = _limits(model, ids, max_tokens)
    texts = [
        _Text(prompt, limit, Text(tokenizer, StopStrings(stop), prompt))
        for prompt, limit in zip(ids, limits, strict=True)
    ]
    run = _Run(model, model.make_states(kv_bits=kv_bits), forward(model), choose)
    with resident(model), progress.bar(total=sum(limits), unit="token", show=verbose) as bar:
        stats = run(texts, prefill_step_size, bar.update)
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


@dataclass
class _Text:
    """One prompt and the text after it.

    past: what the model has read of both; None before that begins
    """

    prompt: list[int]
    limit: int
    pieces: Text
    past: Past | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""

    def unread(self) -> list[int]:
        """Tokens that the model has not read."""
        held = 0 if self.past is None else self.past.position
        return [*self.prompt, *self.tokens][held:]

    def add(self, token: int) -> None:
        """Take the next token; `reason` says whether it is the last."""
        self.tokens.append(token)
        is_last = len(self.tokens) == self.limit
        piece, has_stopped = self.pieces.add(token, is_last)
        self.text += piece
        self.reason = "stop" if has_stopped else "length" if is_last else ""


class _Run:
    """Reads prompts and extends texts."""

    def __init__(
        self, model: LanguageModel, states: ModelStates, step: Forward, choose: _Chooser
    ) -> None:
        self._check = model.check_file
        self._states, self._step, self._choose = states, step, choose

    def __call__(self, texts: list[_Text], size: int, done: Callable[[int], object]) -> BatchStats:
        """Extend all texts to their ends. done: called with each number of new tokens."""
        start = time.perf_counter()
        waiting = deque(texts)
        reading: list[_Text] = []
        while waiting or reading:
            self._begin(waiting, reading, size)
            done(self._read(reading, size))
            reading = [text for text in reading if not text.tokens]
        middle = time.perf_counter()
        while running := [text for text in texts if not text.reason]:
            done(self._extend([(text, text.tokens[-1:]) for text in running]))
        for text in texts:
            self._leave(text)
        read, written = sum(len(t.prompt) for t in texts), sum(len(t.tokens) for t in texts)
        seconds = [max(1e-9, span) for span in (middle - start, time.perf_counter() - middle)]
        return BatchStats(
            prompt_tokens=read,
            prompt_time=seconds[0],
            prompt_tps=read / seconds[0],
            generation_tokens=written,
            generation_time=seconds[1],
            generation_tps=(written - len(texts)) / seconds[1],
            peak_memory=peak_memory(),
        )

    def _begin(self, waiting: deque[_Text], reading: list[_Text], size: int) -> None:
        """Begin to read further prompts until a pass is full, but none before its blocks that another one computes."""
        while waiting and sum(len(text.unread()) for text in reading) < size:
            if any(self._computes(text, waiting[0].prompt) for text in reading):
                return
            text = waiting.popleft()
            text.past = self._states.begin(text.prompt)
            reading.append(text)

    def _computes(self, text: _Text, prompt: list[int]) -> bool:
        """Whether `text`, which is being read, has yet to compute full blocks that `prompt` begins with too."""
        common = sum(1 for _ in takewhile(bool, map(operator.eq, text.prompt, prompt[:-1])))
        held = 0 if text.past is None else text.past.position
        return common // self._states.block > held // self._states.block

    def _read(self, reading: list[_Text], size: int) -> int:
        """One pass over at most `size` tokens of prompts; the number of texts that have their first token now."""
        rows = []
        for text in reading:
            tokens = text.unread()[:size]
            size -= len(tokens)
            if tokens:
                rows.append((text, tokens))
        return self._extend(rows)

    def _extend(self, rows: list[tuple[_Text, list[int]]]) -> int:
        """One pass; the number of texts that have a token more."""
        if self._check is not None:
            self._check(thorough=False)
        tokens = np.array([token for _, new in rows for token in new])
        pasts = [(text.past, len(new)) for text, new in rows if text.past is not None]
        batch = self._states.batch(pasts, tokens)
        logits, likeliest, ranges = self._step(batch)
        batch.advance()
        ready = [i for i, (text, _) in enumerate(rows) if not text.unread()]
        texts = [rows[i][0] for i in ready]
        if not ready:
            return 0
        if len(ready) < len(rows):
            index: Any = np.array(ready) if isinstance(logits, np.ndarray) else mx.array(ready)
            logits, likeliest, ranges = (x[index] for x in (logits, likeliest, ranges))
        for text, token in zip(texts, self._choose(texts, logits, likeliest, ranges), strict=True):
            text.add(token)
            if text.reason:
                self._leave(text)
        return len(texts)

    def _leave(self, text: _Text) -> None:
        if text.past is not None:
            self._states.free(text.past)
            text.past = None


def _seen(text: _Text) -> Array:
    """The tokens so far (n,), as processors of the package take them."""
    ids = np.array([*text.prompt, *text.tokens], np.uint32)
    return mx.array(ids) if ops.is_lazy() else ids


class _Chooser:
    """Picks the next token of each text."""

    def __init__(
        self, sampler: Sampler, biases: list[Processor], processors: list[Processor]
    ) -> None:
        self._sampler, self._biases, self._processors = sampler, biases, processors

    def __call__(
        self, texts: list[_Text], logits: Array, likeliest: Array, ranges: Array
    ) -> list[int]:
        """logits (n, vocab), and what `ops.choose` says of them, for n texts -> n tokens."""
        if not texts:
            return []
        self._check(texts, logits, ranges, processed=False)
        if self._biases or self._processors:
            logits = self._processed(texts, logits)
            likeliest, ranges = best(logits)
            self._check(texts, logits, ranges, processed=True)
        if self._sampler is not greedy:
            likeliest = tokens(self._sampler(mx.array(log_softmax(logits))))
        found: list[int] = np.asarray(likeliest).reshape(-1).tolist()
        if len(found) != len(texts):
            raise ValueError(f"the sampler gave {len(found)} tokens for {len(texts)} texts")
        return found

    def _processed(self, texts: list[_Text], logits: Array) -> Array:
        if isinstance(logits, np.ndarray):
            logits = logits.copy()  # the next step overwrites them
        for process in self._biases:
            logits = processed(process, np.array([], np.uint32), logits)
        for process in self._processors:
            rows = [
                processed(process, _seen(text), logits[i : i + 1]) for i, text in enumerate(texts)
            ]
            if any(row.shape != (1, logits.shape[-1]) for row in rows):
                shapes = {row.shape for row in rows}
                raise ValueError(f"a processor gave {shapes}, expected (1, {logits.shape[-1]})")
            logits = mx.concatenate(rows) if ops.is_lazy() else np.concatenate(rows)
        return at_hand(logits)

    @staticmethod
    def _check(texts: list[_Text], logits: Array, ranges: Array, *, processed: bool) -> None:
        """Raises ValueError if no token can be chosen for one of the texts."""
        for i, (text, extent) in enumerate(zip(texts, np.asarray(ranges), strict=True)):
            with _naming(f"text {i}"):
                read = len(text.prompt) + len(text.tokens)
                logit_range(extent[None], read, logits.shape[-1], processed)
