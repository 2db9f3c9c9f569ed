"""`/v1/completions`: texts that go on, and log-probabilities of texts, as lm-eval asks for them."""

from __future__ import annotations

import json
import time
from codecs import getincrementaldecoder
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from mlx_ferrum.generate.prompt import encode_prompt
from mlx_ferrum.tokenizer import Tokenizer

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, choose, error_object, read, respond
from ..loop import Likely
from ..reply import Answer, Piece
from ..service import Service
from ..texts import encode_fill
from . import form
from .chat import IGNORED, TOP, streaming
from .constraint import constrain, response_format
from .messages import Rendered

PROMPTS = 256
DEFAULT_LIMIT = 16  # OpenAI's


@dataclass
class Echo:
    """What comes before a text: its prompt, if that is wanted."""

    text: str = ""
    tokens: list[tuple[int, Likely | None]] = field(default_factory=list)


class Offsets:
    """Where tokens begin in a text, in characters: one that several tokens spell counts once it is whole."""

    def __init__(self, echo: Echo) -> None:
        self._echo, self._tokens, self._characters = echo, 0, 0
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def add(self, spelled: bytes, is_special: bool) -> int:
        """Where the next token begins. A special one is not part of the text, unless the prompt has it."""
        text = self._decoder.decode(spelled)
        if spelled.isascii():  # what comes before it in `text` is of tokens that spell no character
            self._characters += len(text) - len(spelled)
            text = text[len(text) - len(spelled) :]
        at = self._characters
        is_prompt = self._tokens < len(self._echo.tokens)
        if is_prompt and not at and not self._echo.text.startswith(" "):
            text = text.removeprefix(" ")  # SentencePiece puts one before the first word
        is_echoed = is_prompt and self._echo.text.startswith(text, at)
        self._tokens += 1
        if is_echoed or not is_special:
            self._characters += len(text)
        return at


async def completions(request: Request) -> ASGIApp:
    """Texts that go on after prompts."""
    fields = await read(request)
    stream, has_usage = streaming(fields)
    service = await choose(request, fields, stream)
    chosen = sampling.read(fields, service.recommended, "max_tokens", "n_predict", least=0)
    chosen.limit = DEFAULT_LIMIT if chosen.limit is None else chosen.limit
    n, top, echoes = fields.whole("n", 1, 1, 128), _top(fields), fields.flag("echo")
    suffix = fields.text("suffix", "")
    if suffix and echoes:
        raise fields.error("suffix", suffix, "none with echo")
    fields.refuse("best_of", [n])
    given, format = prompts(fields), response_format(fields)
    fields.finish(IGNORED)
    ids = [await service.prepare(_ids, service.loaded.tokenizer, each, suffix) for each in given]
    before = [Echo()] * len(ids)
    if echoes:
        before = [
            await _echo(service, text, prompt, top) for text, prompt in zip(given, ids, strict=True)
        ]
    reply = CompletionReply(service, [echo for echo in before for _ in range(n)], has_usage, top)
    if chosen.limit == 0:
        if not echoes or stream:
            raise fields.error("max_tokens", 0, "at least 1, or echo without stream")
        return respond(reply.prompts_alone(sum(map(len, ids))))
    await constrain(service, chosen, Rendered("", [], "", []), format)
    answer = reply.answer = service.submit(ids, chosen, n, top=top)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


def _top(fields: Fields) -> int | None:
    """The field logprobs, a number here; false and true as some clients send them."""
    value = fields.get("logprobs")
    if isinstance(value, bool):
        return 1 if value else None
    found: int | None = fields.whole("logprobs", None, 0, TOP)
    return found


def prompts(fields: Fields) -> list[str | list[int]]:
    """The field prompt: one or several, texts or token ids."""
    value = fields.get("prompt")
    if isinstance(value, str):
        return [value]
    found = [value] if isinstance(value, list) and _are_ids(value) else value
    if not isinstance(found, list) or not value or len(found) > PROMPTS:
        raise fields.error(
            "prompt", value, f"text, token ids, or a list of at most {PROMPTS} of them"
        )
    for each in found:
        if not isinstance(each, str) and not (isinstance(each, list) and _are_ids(each)):
            raise fields.error("prompt", each, "texts or lists of token ids")
    return found


def _are_ids(value: list[Any]) -> bool:
    return all(type(token) is int for token in value)


def _ids(tokenizer: Tokenizer, prompt: str | list[int], suffix: str) -> list[int]:
    """Token ids; suffix: what comes after the text, if not empty. Raises RequestError or ValueError."""
    if suffix:
        return encode_fill(tokenizer, prompt, suffix)
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    for token in prompt:
        tokenizer.piece(token)[0]
    return prompt


async def _echo(service: Service, given: str | list[int], ids: list[int], top: int | None) -> Echo:
    text = given if isinstance(given, str) else service.loaded.tokenizer.decode(given)
    if top is None:
        return Echo(text)
    return Echo(text, list(zip(ids, await service.scores(ids, top), strict=True)))


class CompletionReply:
    """Writes the texts, whole or in pieces."""

    answer: Answer

    def __init__(
        self, service: Service, echoes: list[Echo], has_usage: bool, top: int | None
    ) -> None:
        self._echoes, self._has_usage, self._top = echoes, has_usage, top
        self._tokenizer = service.loaded.tokenizer
        self._offsets = [Offsets(echo) for echo in echoes]
        self._head = {
            "id": form.new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": form.FINGERPRINT,
        }
        self._start = f"data: {json.dumps(self._head)[:-1]}, "
        self._stop = ', "usage": null}\n\n' if has_usage else "}\n\n"

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        choices = [self._choice(i, self._after_echo(i, piece)) for i, piece in enumerate(pieces)]
        return {**self._head, "choices": choices, "usage": form.usage(self.answer)}

    def prompts_alone(self, count: int) -> dict[str, Any]:
        """Prompts of `count` tokens, echoed, and nothing after them."""
        ends = [Piece("", [], "length") for _ in self._echoes]
        choices = [self._choice(i, self._after_echo(i, end)) for i, end in enumerate(ends)]
        usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        return {**self._head, "choices": choices, "usage": usage}

    def _after_echo(self, index: int, piece: Piece) -> Piece:
        echo = self._echoes[index]
        tokens: list[Any] = [*echo.tokens, *piece.tokens]
        return Piece(echo.text + piece.text, tokens, piece.finish_reason)

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return {
            "text": piece.text,
            "index": index,
            "logprobs": None if self._top is None else self._logprobs(index, piece.tokens),
            "finish_reason": piece.finish_reason,
        }

    def _logprobs(self, index: int, tokens: list[tuple[int, Likely]]) -> dict[str, Any]:
        texts, own, tops, offsets = [], [], [], []
        for token, likely in tokens:
            text = form.token_text(self._tokenizer, token)
            texts.append(text)
            offsets.append(self._offsets[index].add(*self._tokenizer.piece(token)))
            own.append(None if likely is None else form.finite(likely[0]))
            tops.append(None if likely is None else self._likeliest(text, likely))
        return {
            "tokens": texts,
            "token_logprobs": own,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _likeliest(self, text: str, likely: Likely) -> dict[str, float]:
        own, top = likely
        named = {form.token_text(self._tokenizer, id): form.finite(value) for id, value in top}
        return {**named, text: form.finite(own)}

    def begin(self) -> bytes:
        """The echoes."""
        echoed = (
            self._chunk(i, Piece(echo.text, list(echo.tokens), None))  # type: ignore[arg-type]
            for i, echo in enumerate(self._echoes)
            if echo.text
        )
        return b"".join(echoed)

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of one text."""
        return self._chunk(index, piece)

    def _chunk(self, index: int, piece: Piece) -> bytes:
        logprobs = "null" if self._top is None else json.dumps(self._logprobs(index, piece.tokens))
        finish = "null" if piece.finish_reason is None else f'"{piece.finish_reason}"'
        choice = f'{{"text": {form.quoted(piece.text)}, "index": {index}, "logprobs": {logprobs}, '
        return f'{self._start}"choices": [{choice}"finish_reason": {finish}}}]{self._stop}'.encode()

    def end(self) -> bytes:
        """The usage, if it is wanted, and the end."""
        out = "data: [DONE]\n\n"
        if self._has_usage:
            usage = json.dumps(form.usage(self.answer))
            out = f'{self._start}"choices": [], "usage": {usage}}}\n\n{out}'
        return out.encode()

    def error(self, error: RequestError) -> bytes:
        """An error in place of the rest."""
        return f"data: {json.dumps(error_object(error, ''))}\n\n".encode()
