"""`/v1/messages`, and how many tokens they have."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from mlx_ferrum.replies import Piece as Part

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, choose, error_object, read, respond
from ..openai.constraint import Tools, constrain, named
from ..openai.constraint import choose as choose_tools
from ..openai.form import new_id, quoted
from ..openai.messages import Rendered, render
from ..parts import Said, parts_of
from ..reply import Answer, Piece
from ..sampling import Sampling
from ..service import Service
from .convert import conversation, tools

REASONS = {"length": "max_tokens", "stop": "end_turn"}
EFFORTS = {"disabled": "none", "enabled": "high", "adaptive": "high"}
MODES = {"auto": "auto", "none": "none", "any": "required"}
DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "arguments": ("input_json_delta", "partial_json"),
}
EMPTY: dict[str, Callable[[], dict[str, Any]]] = {
    "text": lambda: {"type": "text", "text": ""},
    "reasoning": lambda: {"type": "thinking", "thinking": "", "signature": ""},
}
IGNORED = ("metadata", "service_tier", "container", "output_config", "context_management", "betas")


async def messages(request: Request) -> ASGIApp:
    """A reply to messages."""
    fields = await read(request)
    fields.text("model")  # required
    stream = fields.flag("stream")
    service = await choose(request, fields, stream)
    if fields.get("max_tokens") is None:
        raise fields.error("max_tokens", None, "a whole number")
    chosen = _sampling(fields, service)
    chosen_tools = _tools(fields)
    prompt = await _prompt(fields, service, chosen_tools)
    fields.finish(IGNORED)
    await constrain(service, chosen, prompt, None, chosen_tools)
    answer = service.submit([prompt.ids], chosen, parser=prompt.parser)
    reply = MessageReply(service.name, answer)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


async def count_tokens(request: Request) -> Response:
    """The number of tokens of a prompt."""
    fields = await read(request)
    fields.text("model")  # required
    service = await choose(request, fields)
    prompt = await _prompt(fields, service, _tools(fields))
    fields.finish(IGNORED)
    return respond({"input_tokens": len(prompt.ids)})


def _tools(fields: Fields) -> Tools:
    """The fields tools and tool_choice. Raises RequestError."""
    offered, choice = tools(fields), fields.object("tool_choice")
    kind, name = choice.text("type", "auto"), choice.text("name", "")
    is_parallel = not choice.flag("disable_parallel_tool_use")
    if kind == "tool":
        return named(fields, offered, name)
    if kind not in MODES:
        raise choice.error("type", kind, f"one of {', '.join(MODES)}, tool")
    return choose_tools(fields, offered, MODES[kind], is_parallel=is_parallel)


async def _prompt(fields: Fields, service: Service, tools: Tools) -> Rendered:
    """The prompt; a last message of the assistant is continued."""
    fields.refuse("mcp_servers")
    given = conversation(fields)
    kind = fields.object("thinking").text("type", "") if fields.get("thinking") else ""
    tokenizer = service.loaded.tokenizer
    continues = given[-1]["role"] == "assistant"
    effort = EFFORTS.get(kind)
    return await service.prepare(
        render, tokenizer, given, {}, effort=effort, continues=continues, tools=tools.offered
    )


def _sampling(fields: Fields, service: Service) -> Sampling:
    chosen = sampling.read(fields, service.recommended, "max_tokens")
    chosen.stop = sampling.stops(fields, "stop_sequences")
    return chosen


class MessageReply:
    """Writes the reply, whole or in events."""

    def __init__(self, name: str, answer: Answer) -> None:
        self._answer, self._has_begun = answer, False
        self._said = Said([])
        self._block = -1  # number of the block that is open, or was last
        self._open = ""  # its kind
        self._head = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": name,
        }

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        [piece] = pieces
        said = self._said = Said(parts_of(piece))
        content: list[Any] = []
        if said.reasoning:
            content.append({"type": "thinking", "thinking": said.reasoning, "signature": ""})
        if said.text or not said.calls:
            content.append({"type": "text", "text": said.text})
        for call in said.calls.values():
            input = json.loads(call.arguments or "{}")
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": input})
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
        reason = REASONS.get(piece.finish_reason or "")
        if reason == "end_turn" and self._said.calls:
            reason = "tool_use"
        elif stop is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop}

    def begin(self) -> bytes:
        """Nothing, until it is known how much of the prompt was cached."""
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """Events of a piece, with those that begin and end the message."""
        out = b"" if self._has_begun else self._start()
        for part in parts_of(piece):
            self._said.add(part)
            out += self._part(part)
        if piece.finish_reason is not None:
            out += self._close()
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
        return event("message_start", message={**message, "usage": usage}) + event("ping")

    def _part(self, part: Part) -> bytes:
        """A part of the reply; a block of its kind begins if none is open."""
        if part.kind == "call":
            block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            return self._begin("arguments", block)
        kind = "text" if part.kind == "failed" else part.kind
        out = b"" if kind == self._open else self._begin(kind, EMPTY[kind]())
        name, field = DELTAS[kind]
        delta = f'{{"type": "{name}", "{field}": {quoted(part.text)}}}'
        data = f'{{"type": "content_block_delta", "index": {self._block}, "delta": {delta}}}'
        return out + f"event: content_block_delta\ndata: {data}\n\n".encode()

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        out = self._close()
        self._open = kind
        self._block += 1
        return out + event("content_block_start", index=self._block, content_block=block)

    def _close(self) -> bytes:
        is_open, self._open = self._open, ""
        return event("content_block_stop", index=self._block) if is_open else b""

    def end(self) -> bytes:
        """Nothing comes after message_stop."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """An error in place of the rest."""
        return event("error", error=error_object(error, "/v1/messages")["error"])


def event(kind: str, **values: Any) -> bytes:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()
