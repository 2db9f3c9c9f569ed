"""From the tokens of texts to pieces for a client. All of it happens in asyncio's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlx_ferrum.engine import Event
from mlx_ferrum.generate.stops import StopStrings
from mlx_ferrum.generate.stream import Text
from mlx_ferrum.replies import Piece as Part
from mlx_ferrum.replies import ReplyParser
from mlx_ferrum.tokenizer import Tokenizer

from .loop import Likely

BEFORE = 16  # tokens of a prompt that can matter for the text after it


@dataclass(slots=True)
class Piece:
    """What is new of a text.

    text: as the model wrote it; "" where the reply has a parser
    tokens: ids with their log-probabilities, if they were asked for
    finish_reason: "stop" or "length" with the last piece, else None
    parts: the text taken apart, where the reply has a parser
    """

    text: str
    tokens: list[tuple[int, Likely]]
    finish_reason: str | None
    parts: list[Part] = field(default_factory=list)


class Reply:
    """One text: takes tokens, gives pieces. What nobody takes yet is kept.

    count: tokens so far, an end token included
    reasoning: tokens of them that open, are within or close reasoning
    hits: positions of the prompt that did not have to be computed
    stop: the stop string that ended the text, else None
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        prompt: Sequence[int],
        *,
        top: int | None = None,
        parser: ReplyParser | None = None,
        calls: int | None = None,
    ) -> None:
        """top: how many of the likeliest tokens are wanted; None: no log-probabilities.

        parser: takes the text apart
        calls: of tools, at most; the text ends before another one
        """
        self._calls = calls
        self._stops = StopStrings(stops)
        shown = None if parser is None else parser.markers
        self._text = Text(tokenizer, self._stops, prompt[-BEFORE:], shown)
        self.parser = parser
        self._parts: list[Part] = []
        self._pieces: list[str] = []
        self._tokens: list[tuple[int, Likely]] = []
        self.top = top
        self.answer: Answer | None = None
        self.count = self.reasoning = self.hits = 0
        self.finish_reason: str | None = None
        self.error: Exception | None = None

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text."""
        return self._stops.found

    def feed(self, event: Event, likely: Likely | None) -> None:
        """Take an event of the engine."""
        answer = self.answer
        if answer is None or self.finish_reason is not None:
            return  # it has ended by a stop string, or nobody wants it
        self.hits = event.hits
        if event.token is None:
            self.error, self.finish_reason = event.error, event.finish_reason
        else:
            self._add(event.token, event.finish_reason, likely)
            answer.arrived(self)
        if self.finish_reason is not None:
            answer.ended(self, event.finish_reason is None)
        answer.wake()

    def _add(self, token: int, finish_reason: str | None, likely: Likely | None) -> None:
        self.count += 1
        text, has_stopped = self._text.add(token, finish_reason == "length")
        if self.parser is None:
            self._pieces.append(text)
        if likely is not None:
            self._tokens.append((token, likely))
        self.finish_reason = "stop" if has_stopped else finish_reason
        if self.parser is not None:
            self._take_apart(self.parser, text)

    def _take_apart(self, parser: ReplyParser, text: str) -> None:
        was_in_reasoning = parser.in_reasoning
        parts = parser.feed(text)
        self.reasoning += was_in_reasoning or parser.in_reasoning
        if self.finish_reason is not None:
            parts += parser.end()
        for part in parts:
            if part.kind == "call" and part.index == self._calls:
                self.finish_reason = "stop"
                return
            self._parts.append(part)

    def take(self) -> Piece | None:
        """What is new, in one piece; None if nothing is."""
        pieces = self._pieces
        text = pieces[0] if len(pieces) == 1 else "".join(pieces)
        if not (text or self._tokens or self._parts or self.finish_reason):
            return None
        piece = Piece(text, self._tokens, self.finish_reason, self._parts)
        self._pieces, self._tokens, self._parts = [], [], []
        return piece


class Answer:
    """All texts of one request: n for each prompt, in order.

    prompts: their lengths in tokens
    open: texts that have not ended
    is_closed: all texts have ended, or nobody wants them
    timers: to be cancelled at the end
    """

    def __init__(
        self,
        replies: Sequence[Reply],
        prompts: Sequence[int],
        *,
        release: Callable[[Answer, Sequence[Reply]], None],
        arrived: Callable[[float, bool], None],
        idle: float,
    ) -> None:
        """release: called with texts that the engine should end, and once with none when all have ended.

        arrived: called with the seconds since the token before, and whether it is a text's first one
        idle: seconds without a token after which `wait` returns False
        """
        self.replies, self.prompts = list(replies), list(prompts)
        self._release, self._arrived, self._idle = release, arrived, idle
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.open = len(self.replies)
        now = time.perf_counter()
        self._times = dict.fromkeys(self.replies, now)
        self._last = now
        self._timer = self._loop.call_later(idle, self._tick)
        self.timers: list[asyncio.TimerHandle] = []
        self.is_closed = self._is_idle = False
        for reply in self.replies:
            reply.answer = self

    @property
    def error(self) -> Exception | None:
        """Why a text has ended before its time."""
        return next((reply.error for reply in self.replies if reply.error is not None), None)

    @property
    def has_news(self) -> bool:
        """Whether `wait` returns at once."""
        return self._event.is_set()

    @property
    def generated(self) -> int:
        """Tokens of all texts."""
        return sum(reply.count for reply in self.replies)

    @property
    def reasoning(self) -> int:
        """Tokens of all texts that were reasoning."""
        return sum(reply.reasoning for reply in self.replies)

    @property
    def cached(self) -> int:
        """Tokens of the prompts that did not have to be computed."""
        n = len(self.replies) // len(self.prompts)
        return sum(reply.hits for reply in self.replies[::n])

    def wake(self) -> None:
        """Something is new."""
        self._is_idle = False
        self._event.set()

    async def wait(self) -> bool:
        """Wait for something new; False if nothing came for a while."""
        await self._event.wait()
        self._event.clear()
        return not self._is_idle

    def arrived(self, reply: Reply) -> None:
        """A token has come."""
        now = time.perf_counter()
        self._arrived(now - self._times[reply], reply.count == 1)
        self._times[reply] = self._last = now

    def ended(self, reply: Reply, is_running: bool) -> None:
        """A text has ended. is_running: the engine does not know it yet."""
        self.open -= 1
        if is_running:
            self._release(self, [reply])
        if not self.open:
            self.close()

    def close(self) -> None:
        """The client is gone, or has all: free what is still held."""
        if self.is_closed:
            return
        self.is_closed = True
        for timer in (self._timer, *self.timers):
            timer.cancel()
        running = [reply for reply in self.replies if reply.finish_reason is None]
        if running:
            self._release(self, running)
        self._release(self, [])
        for reply in self.replies:
            reply.answer = None
        self.wake()

    def fail(self, error: Exception) -> None:
        """End all texts with an error."""
        for reply in self.replies:
            if reply.finish_reason is None:
                reply.error = error
        self.close()

    def _tick(self) -> None:
        now = time.perf_counter()
        self._timer = self._loop.call_later(self._idle, self._tick)
        if now - self._last >= self._idle:
            self._last, self._is_idle = now, True
            self._event.set()
