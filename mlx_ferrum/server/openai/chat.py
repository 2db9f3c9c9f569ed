"""`/v1/chat/completions`."""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from mlx_ferrum.replies import Piece as Part

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, choose, error_object, read
from ..parts import Call, Said, whole_calls
from ..reply import Answer, Piece
from ..service import Service
from . import form
from .constraint import Tools, asked_tools, constrain, response_format
from .messages import messages, render, template_arguments

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
TOP = 20
# They do not change what is generated.
IGNORED = frozenset(
    """user safety_identifier prompt_cache_key prompt_cache_retention metadata service_tier store verbosity
    prediction""".split()
)


async def chat(request: Request) -> ASGIApp:
    """A reply to messages."""
    fields = await read(request)
    stream, has_usage = streaming(fields)
    service = await choose(request, fields, stream)
    chosen = sampling.read(
        fields, service.recommended, "max_completion_tokens", "max_tokens", "n_predict"
    )
    n = fields.whole("n", 1, 1, 128)
    top = likeliest(fields)
    effort = fields.get("reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise fields.error("reasoning_effort", effort, f"one of {', '.join(EFFORTS)}")
    refuse(fields)
    tools, format = asked_tools(fields, offered_tools(fields)), response_format(fields)
    continues = fields.flag("continue_final_message")
    call = {"effort": effort, "continues": continues, "tools": tools.offered}
    arguments = template_arguments(fields)
    asked = messages(fields)
    fields.finish(IGNORED)
    tokenizer = service.loaded.tokenizer
    prompt = await service.prepare(render, tokenizer, asked, arguments, **call)
    await constrain(service, chosen, prompt, format, tools)
    answer = service.submit([prompt.ids], chosen, n, top=top, parser=prompt.parser)
    reply = ChatReply(service, answer, tools, has_usage=has_usage, has_logprobs=top is not None)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


def likeliest(fields: Fields) -> int | None:
    """The fields logprobs and top_logprobs: how many of the likeliest tokens to list, None for no log-probabilities."""
    top = fields.whole("top_logprobs", 0, 0, TOP)
    if fields.flag("logprobs"):
        return int(top)
    if top:
        raise fields.error("top_logprobs", top, "logprobs to be true with it")
    return None


def streaming(fields: Fields) -> tuple[bool, bool]:
    """The fields stream and stream_options: whether to stream, and whether to end with the usage."""
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    has_usage = options.flag("include_usage")
    options.finish(["include_obfuscation"])
    return stream, has_usage


def refuse(fields: Fields) -> None:
    """Raises RequestError for what cannot be honoured."""
    fields.refuse("modalities", [["text"]])
    for name in ("audio", "web_search_options", "functions", "function_call"):
        fields.refuse(name)


def offered_tools(fields: Fields) -> list[Any]:
    """The field tools: what the model may call. Raises RequestError."""
    tools = fields.items("tools")
    for i, tool in enumerate(tools):
        found = Fields(tool, f"tools[{i}]")
        if found.text("type") != "function":
            raise found.error("type", tool["type"], "'function'")
        found.object("function").text("name")
    return tools


def called(call: Call) -> dict[str, Any]:
    """A whole call."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def delta(part: Part) -> dict[str, Any]:
    """What a stream says of a part. A call that turns out malformed comes as text, too."""
    if part.kind == "reasoning":
        return {"reasoning_content": part.text, "reasoning": part.text}
    if part.kind == "call":
        function = {"name": part.name, "arguments": ""}
        call = {"index": part.index, "id": part.id, "type": "function", "function": function}
        return {"tool_calls": [call]}
    if part.kind == "arguments":
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
    return {"content": part.text}


class ChatReply:
    """Writes the reply, whole or in pieces."""

    def __init__(
        self, service: Service, answer: Answer, tools: Tools, *, has_usage: bool, has_logprobs: bool
    ) -> None:
        self._is_named = tools.is_named
        self._answer, self._has_usage, self._has_logprobs = answer, has_usage, has_logprobs
        self._tokenizer = service.loaded.tokenizer
        self._calls = [0] * len(answer.replies)  # that are whole
        self._head = {
            "id": form.new_id("chatcmpl-"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": form.FINGERPRINT,
        }
        head = json.dumps({**self._head, "object": "chat.completion.chunk"})[:-1]
        self._start = f"data: {head}, "
        self._stop = ', "usage": null}\n\n' if has_usage else "}\n\n"

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        choices = [
            {
                "index": index,
                "message": self._message(index, piece),
                "logprobs": self._logprobs(piece),
                "finish_reason": self._reason(index, piece),
            }
            for index, piece in enumerate(pieces)
        ]
        return {**self._head, "choices": choices, "usage": form.usage(self._answer)}

    def _message(self, index: int, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        if self._answer.replies[index].parser is None:
            return message
        said = Said(piece.parts)
        self._calls[index] = len(said.calls)
        message["content"] = said.text if said.text or not said.calls else None
        if said.reasoning:
            message |= {"reasoning_content": said.reasoning, "reasoning": said.reasoning}
        if said.calls:
            message["tool_calls"] = [called(call) for call in said.calls.values()]
        return message

    def _reason(self, index: int, piece: Piece) -> str | None:
        """Why a text has ended. A function that the client named ends it with "stop", as OpenAI documents it."""
        is_call = piece.finish_reason == "stop" and self._calls[index] > 0 and not self._is_named
        return "tool_calls" if is_call else piece.finish_reason

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self._has_logprobs:
            return None
        return form.chat_logprobs(self._tokenizer, piece.tokens)

    def begin(self) -> bytes:
        """The role of each choice."""
        delta = '{"role": "assistant", "content": ""}'
        return b"".join(self._chunk(i, delta) for i in range(len(self._answer.replies)))

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of one choice, and its end."""
        deltas = [f'{{"content": {form.quoted(piece.text)}}}'] if piece.text else []
        if self._answer.replies[index].parser is not None:
            self._calls[index] += whole_calls(piece.parts)
            deltas = [json.dumps(delta(part)) for part in piece.parts]
        if piece.tokens and not deltas:
            deltas = ["{}"]
        logprobs = json.dumps(self._logprobs(piece)) if piece.tokens else "null"
        out = b""
        for each in deltas:
            out += self._chunk(index, each, logprobs)
            logprobs = "null"
        if piece.finish_reason is not None:
            out += self._chunk(index, "{}", finish=f'"{self._reason(index, piece)}"')
        return out

    def _chunk(self, index: int, delta: str, logprobs: str = "null", finish: str = "null") -> bytes:
        choice = f'"choices": [{{"index": {index}, "delta": {delta}, "logprobs": {logprobs}, '
        return f'{self._start}{choice}"finish_reason": {finish}}}]{self._stop}'.encode()

    def end(self) -> bytes:
        """The usage, if it is wanted, and the end."""
        out = "data: [DONE]\n\n"
        if self._has_usage:
            usage = json.dumps(form.usage(self._answer))
            out = f'{self._start}"choices": [], "usage": {usage}}}\n\n{out}'
        return out.encode()

    def error(self, error: RequestError) -> bytes:
        """An error in place of the rest."""
        return f"data: {json.dumps(error_object(error, ''))}\n\n".encode()
