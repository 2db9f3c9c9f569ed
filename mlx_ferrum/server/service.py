"""A model that is loaded, and the texts that it is asked for. Used in asyncio's thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from mlx_ferrum.engine import Engine, Request, Stats
from mlx_ferrum.models.base import LanguageModel
from mlx_ferrum.models.encoder import Encoder
from mlx_ferrum.replies import ReplyParser
from mlx_ferrum.structured import Grammars
from mlx_ferrum.tokenizer import Tokenizer

from .errors import RequestError
from .loop import Likely, Loop, Told, Work
from .metrics import Figures
from .reply import Answer, Reply
from .sampling import Sampling
from .scoring import scores

T = TypeVar("T")


@dataclass
class Limits:
    """What a client may use.

    running: texts that run at the same time
    queue: texts that wait for them
    seconds: that a request may take
    idle: seconds without a token, or of waiting for the model, after which a stream gets a comment
    body: bytes of a request's body
    prompt: tokens of a prompt; None: what the model's context takes
    """

    running: int = 32
    queue: int = 256
    seconds: float = 3600.0
    idle: float = 10.0
    body: int = 32 << 20
    prompt: int | None = None


@dataclass
class Loaded:
    """A model for texts."""

    model: LanguageModel
    tokenizer: Tokenizer
    engine: Engine


@dataclass
class LoadedEncoder:
    """A model for embeddings."""

    model: Encoder
    tokenizer: Tokenizer


@dataclass
class Service:
    """A model from its loading on.

    load: gives the model; runs in the engine's thread
    name: that replies call it by
    freed: called when all answers have ended
    failure: what has ended the engine
    answers: that run or wait for their turn
    """

    load: Callable[[], Loaded | LoadedEncoder]
    name: str
    limits: Limits
    metrics: Figures
    freed: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.failure: Exception | None = None
        self.answers: set[Answer] = set()
        self._loaded: Loaded | LoadedEncoder | None = None
        self._executor = ThreadPoolExecutor(1, "prompts")
        self._loop = Loop(self._make, self._deliver, self._changed)

    def start(self, changed: Callable[[Exception | None], None]) -> None:
        """Begin to load, in a running asyncio loop.

        changed: called there with None once the model is loaded, and with what ends the loading or the engine
        """
        self._asyncio, self._told = asyncio.get_running_loop(), changed
        self._loop.start()

    async def close(self) -> None:
        """End all that runs, and let go of the model."""
        for answer in list(self.answers):
            answer.fail(RequestError("the server is shutting down", status=503))
        await asyncio.to_thread(self._loop.close)
        self._executor.shutdown(wait=False)
        self._loaded = self.failure = None
        vars(self).pop("grammars", None)

    @property
    def model(self) -> LanguageModel | Encoder:
        """The model, once it is loaded."""
        return self._found().model

    @property
    def loaded(self) -> Loaded:
        """The model for texts. Raises RequestError for an encoder, and with status 503 once the engine has failed."""
        found = self._found()
        if isinstance(found, LoadedEncoder):
            text = f"{self.name} is an encoder and makes no text, expected a language model"
            raise RequestError(text, param="model")
        return found

    @property
    def encoder(self) -> LoadedEncoder:
        """The model for embeddings. Raises RequestError as `loaded`."""
        found = self._found()
        if isinstance(found, Loaded):
            text = f"{self.name} is a language model and makes no embeddings, expected an encoder"
            raise RequestError(text, param="model")
        return found

    def _found(self) -> Loaded | LoadedEncoder:
        if self.failure is not None:
            raise RequestError(f"the model failed: {self.failure}", status=503, code="failing")
        assert self._loaded is not None, "requests use models that are loaded"
        return self._loaded

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles grammars for the model; for `prepare`, since it takes long the first time."""
        loaded = self.loaded
        return Grammars(loaded.tokenizer, loaded.model.args.vocab_size)

    @property
    def recommended(self) -> Mapping[str, Any]:
        """The sampling that the model's file recommends."""
        return self.loaded.model.recommended.values

    async def prepare(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run work on texts, such as a template or a tokenizer, in a thread beside asyncio's.

        Raises RequestError for a ValueError.
        """
        try:
            call = self._executor.submit(lambda: function(*args, **options))
            return await asyncio.wrap_future(call)
        except ValueError as error:
            raise RequestError(" ".join(str(error).split())) from None

    def submit(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        *,
        top: int | None = None,
        parser: Callable[[], ReplyParser | None] = lambda: None,
    ) -> Answer:
        """Queue n texts for each prompt.

        top: likeliest tokens to report; None: no log-probabilities
        parser: makes what takes a text apart
        Raises RequestError if a prompt is too long, or too many texts wait already.
        """
        limits = [self._limit(prompt, sampling.limit) for prompt in prompts]
        self._check_room(n * len(prompts))
        tokenizer = self.loaded.tokenizer
        try:
            requests = [
                Request(
                    prompt,
                    limit,
                    sampling.sampler,
                    processors=sampling.processors,
                    bias=sampling.bias,
                    constraint=sampling.constraint,
                    end_tokens=tokenizer.eos_token_ids,
                    ignore_eos=sampling.ignore_eos,
                    logprobs=top is not None,
                )
                for prompt, limit in zip(prompts, limits, strict=True)
            ]
        except ValueError as error:
            raise RequestError(str(error)) from None
        replies = [
            Reply(tokenizer, sampling.stop, prompt, top=top, parser=parser(), calls=sampling.calls)
            for prompt in prompts
            for _ in range(n)
        ]
        answer = Answer(
            replies,
            [len(prompt) for prompt in prompts],
            release=self._release,
            arrived=self.metrics.arrived,
            idle=self.limits.idle,
        )
        self._begin(answer)
        for i, request in enumerate(requests):
            self._loop.submit(request, replies[i * n : (i + 1) * n])
        return answer

    def _begin(self, answer: Answer) -> None:
        self.answers.add(answer)
        self.metrics.asked(sum(answer.prompts))
        text = f"the request took longer than {self.limits.seconds:g} seconds"
        error = RequestError(text, status=504, code="timeout")
        timer = self._asyncio.call_later(self.limits.seconds, answer.fail, error)
        answer.timers.append(timer)

    def _limit(self, prompt: Sequence[int], asked: int | None) -> int:
        """How many tokens may be generated."""
        context = self.loaded.model.args.context_length
        most = min(context - 1, self.limits.prompt or context)
        if not prompt:
            raise RequestError("the prompt is empty (0 tokens), expected at least one")
        if len(prompt) > most:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, expected at most {most}",
                code="context_length_exceeded",
            )
        room = context - len(prompt)
        return room if asked is None else min(asked, room)

    def _check_room(self, texts: int) -> None:
        limits = self.limits
        most = limits.running + limits.queue
        if texts > most:
            raise RequestError(f"{texts} texts are asked for, expected at most {most}", param="n")
        if sum(answer.open for answer in self.answers) + texts > most:
            text = f"{most} texts run or wait already"
            raise RequestError(text, status=429, code="rate_limit_exceeded", retry_after=1)

    async def scores(self, prompt: Sequence[int], top: int) -> list[Likely | None]:
        """See `scoring.scores`. Raises RequestError as `submit`."""
        self._limit(prompt, 1)
        return await self.work(scores(self.loaded.model, prompt, top))

    async def work(self, work: Work[T]) -> T:
        """Run work on the model between steps; it stops where the caller is cancelled."""
        return await asyncio.wrap_future(self._loop.work(work))

    async def stats(self) -> Stats:
        """Figures of the engine; of an encoder, which has none, zeros."""
        found = self._found()
        if isinstance(found, LoadedEncoder):
            return Stats()
        engine = found.engine

        def made() -> Work[Stats]:
            yield from ()
            return engine.stats()

        return await self.work(made())

    def _release(self, answer: Answer, replies: Sequence[Reply]) -> None:
        if replies:
            self._loop.cancel(replies)
        else:
            self.answers.discard(answer)
            self.metrics.ended(answer)
            if not self.answers:
                self.freed()

    def _make(self) -> Engine | None:
        self._loaded = found = self.load()
        return found.engine if isinstance(found, Loaded) else None

    def _deliver(self, told: list[Told]) -> None:
        self._asyncio.call_soon_threadsafe(_feed, told)

    def _changed(self, error: Exception | None) -> None:
        if error is not None:
            self.failure = error
        self._asyncio.call_soon_threadsafe(self._told, error)


def _feed(told: list[Told]) -> None:
    for sink, event, likely in told:
        sink.feed(event, likely)
