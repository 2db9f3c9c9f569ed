"""`/v1/messages`, and how many tokens they have."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, error_object, read, respond
from ..openai.form import new_id, quoted
from ..openai.messages import render
from ..reply import Answer, Piece
from ..sampling import Sampling
from ..service import Service
from .convert import conversation

REASONS = {"length": "max_tokens", "stop": "end_turn"}
EFFORTS = {"disabled": "none", "enabled": "high", "adaptive": "high"}
IGNORED = ("metadata", "service_tier", "container", "output_config", "context_management", "betas")


async def messages(request: Request) -> ASGIApp:
    """A reply to messages."""
    service: Service = request.app.state.service
    fields = await read(request)
    service.check_name(fields.text("model"))
    if fields.get("max_tokens") is None:
        raise fields.error("max_tokens", None, "a whole number")
    chosen = _sampling(fields, service)
    stream = fields.flag("stream")
    prompt = await _prompt(fields, service)
    fields.finish(IGNORED)
    answer = service.submit([prompt], chosen)
    reply = MessageReply(service.name, answer)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


async def count_tokens(request: Request) -> Response:
    """The number of tokens of a prompt."""
    service: Service = request.app.state.service
    fields = await read(request)
    service.check_name(fields.text("model"))
    prompt = await _prompt(fields, service)
    fields.finish(IGNORED)
    return respond({"input_tokens": len(prompt)})


async def _prompt(fields: Fields, service: Service) -> list[int]:
    """Token ids; a last message of the assistant is continued."""
    for name in ("tools", "mcp_servers"):
        fields.refuse(name)
    fields.refuse("tool_choice", [{"type": "auto"}, {"type": "none"}])
    given = conversation(fields)
    kind = fields.object("thinking").text("type", "") if fields.get("thinking") else ""
    tokenizer = service.loaded.tokenizer
    continues = given[-1]["role"] == "assistant"
    rendered = await service.prepare(
        render, tokenizer, given, {}, effort=EFFORTS.get(kind), continues=continues
    )
    return rendered.ids


def _sampling(fields: Fields, service: Service) -> Sampling:
    chosen = sampling.read(fields, service.recommended, "max_tokens")
    chosen.stop = sampling.stops(fields, "stop_sequences")
    return chosen


class MessageReply:
    """Writes the reply, whole or in events."""

    def __init__(self, name: str, answer: Answer) -> None:
        self._answer, self._has_begun = answer, False
        self._head = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": name,
        }

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        [piece] = pieces
        content = [{"type": "text", "text": piece.text}]
        usage = {**self._input(), "output_tokens": self._answer.generated}
        return {**self._head, "content": content, **self._end(piece), "usage": usage}

    def _input(self) -> dict[str, int]:
        """Cached tokens are not counted again."""
        [prompt], cached = self._answer.prompts, self._answer.cached
        return {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }

    def _end(self, piece: Piece) -> dict[str, Any]:
        stop = self._answer.replies[0].stop
        reason = "stop_sequence" if stop is not None else REASONS.get(piece.finish_reason or "")
        return {"stop_reason": reason, "stop_sequence": stop}

    def begin(self) -> bytes:
        """Nothing, until it is known how much of the prompt was cached."""
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """Events of a piece, with those that begin and end the message."""
        out = b"" if self._has_begun else self._start()
        if piece.text:
            delta = f'{{"type": "text_delta", "text": {quoted(piece.text)}}}'
            data = f'{{"type": "content_block_delta", "index": 0, "delta": {delta}}}'
            out += f"event: content_block_delta\ndata: {data}\n\n".encode()
        if piece.finish_reason is not None:
            out += event("content_block_stop", index=0)
            usage = {"output_tokens": self._answer.generated}
            out += event("message_delta", delta=self._end(piece), usage=usage)
            out += event("message_stop")
        return out

    def _start(self) -> bytes:
        self._has_begun = True
        usage = {**self._input(), "output_tokens": 1}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }
        block = {"type": "text", "text": ""}
        out = event("message_start", message={**message, "usage": usage})
        return out + event("content_block_start", index=0, content_block=block) + event("ping")

    def end(self) -> bytes:
        """Nothing comes after message_stop."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """An error in place of the rest."""
        return event("error", error=error_object(error, "/v1/messages")["error"])


def event(kind: str, **values: Any) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()
