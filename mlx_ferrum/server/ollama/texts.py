"""`/api/chat` and `/api/generate`: a line of JSON for each piece."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp

from mlx_ferrum.generate.prompt import encode_prompt

from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, choose, read, respond
from ..openai.chat import offered_tools
from ..openai.constraint import ANY_OBJECT, Form, Tools, asked_tools, constrain
from ..openai.messages import Rendered, messages, render
from ..parts import Call, Said, parts_of
from ..reply import Answer, Piece
from ..service import Service
from ..texts import encode_fill
from .fields import read_sampling

HEADERS = [(b"content-type", b"application/x-ndjson")]
THINKS = ("low", "medium", "high")


async def chat(request: Request) -> ASGIApp:
    """A reply to messages."""
    fields = await read(request)
    service = await choose(request, fields)
    given = messages(fields) if fields.items("messages") else []
    return await _answer(request, service, fields, given, is_chat=True)


async def generate(request: Request) -> ASGIApp:
    """A text after a prompt, through the chat template unless it is `raw` or there is a `suffix`."""
    fields = await read(request)
    service = await choose(request, fields)
    for field in ("images", "template", "context"):
        fields.refuse(field)
    text, system = fields.text("prompt", ""), fields.text("system", "")
    suffix = fields.text("suffix", "")
    raw = fields.flag("raw") or not service.loaded.tokenizer.has_chat_template or bool(suffix)
    if raw and system:
        raise fields.error("system", system, "none with suffix, raw or without a chat template")
    given: str | list[dict[str, Any]] = text
    if not raw and text:
        turns = [("system", system), ("user", text)]
        given = [{"role": role, "content": content} for role, content in turns if content]
    return await _answer(request, service, fields, given, is_chat=False, suffix=suffix)


async def _answer(
    request: Request,
    service: Service,
    fields: Fields,
    given: str | Sequence[dict[str, Any]],
    *,
    is_chat: bool,
    suffix: str = "",
) -> ASGIApp:
    name = fields.text("model", service.name)
    chosen, stream = read_sampling(fields, service), fields.flag("stream", True)
    effort, format = _effort(fields), _format(fields)
    tools = asked_tools(fields, offered_tools(fields)) if is_chat else Tools()
    fields.finish(["keep_alive"])
    tokenizer = service.loaded.tokenizer
    if not given and not suffix:  # which loads a model
        return respond(
            {**_head(name), **_content(Said([]), is_chat), "done": True, "done_reason": "load"}
        )
    if isinstance(given, str):
        encode, texts = (encode_fill, (given, suffix)) if suffix else (encode_prompt, (given,))
        ids = await service.prepare(encode, tokenizer, *texts)
        prompt = Rendered(given, ids, "", [])
    else:
        call = {"effort": effort, "tools": tools.offered}
        prompt = await service.prepare(render, tokenizer, given, {}, **call)
    await constrain(service, chosen, prompt, format, tools)
    answer = service.submit([prompt.ids], chosen, parser=prompt.parser)
    lines = Lines(answer, name, is_chat)
    return (
        Stream(answer, lines, HEADERS, b"")
        if stream
        else await answered(request, answer, lines.whole)
    )


def _effort(fields: Fields) -> str | None:
    """The field `think` as OpenAI's clients say it; None where it is absent."""
    think = fields.get("think")
    if isinstance(think, bool):
        return "high" if think else "none"
    if think is not None and think not in THINKS:
        raise fields.error("think", think, f"true, false or one of {', '.join(THINKS)}")
    found: str | None = think
    return found


def _format(fields: Fields) -> Form | None:
    """The field `format`: "json" or a JSON schema; None for any text."""
    value = fields.get("format", "")
    if isinstance(value, dict):
        return Form("json", value)
    if value not in ("", "json"):
        raise fields.error("format", value, "'json' or a JSON schema")
    return ANY_OBJECT if value else None


def _head(name: str) -> dict[str, Any]:
    now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    return {"model": name, "created_at": now}


def _content(said: Said, is_chat: bool) -> dict[str, Any]:
    thinking = {"thinking": said.reasoning} if said.reasoning else {}
    if not is_chat:
        return {"response": said.text, **thinking}
    message: dict[str, Any] = {"role": "assistant", "content": said.text, **thinking}
    if said.calls:
        message["tool_calls"] = [_called(call) for call in said.calls.values()]
    return {"message": message}


def _called(call: Call) -> dict[str, Any]:
    """A call, whose arguments are an object here."""
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")}}


class Lines:
    """Writes a text, whole or in pieces."""

    def __init__(self, answer: Answer, name: str, is_chat: bool) -> None:
        self._answer, self._name, self._is_chat = answer, name, is_chat
        self._since, self._first = time.perf_counter_ns(), 0
        self._said = Said([])

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        [piece] = pieces
        return self._last(Said(parts_of(piece)), piece.finish_reason)

    def _last(self, said: Said, reason: str | None) -> dict[str, Any]:
        """Times are in nanoseconds."""
        now, first = time.perf_counter_ns(), self._first or time.perf_counter_ns()
        return {
            **_head(self._name),
            **_content(said, self._is_chat),
            "done": True,
            "done_reason": reason,
            "total_duration": now - self._since,
            "load_duration": 0,
            "prompt_eval_count": sum(self._answer.prompts),
            "prompt_eval_duration": first - self._since,
            "eval_count": self._answer.generated,
            "eval_duration": now - first,
        }

    def begin(self) -> bytes:
        """Nothing comes first."""
        return b""

    def piece(self, index: int, piece: Piece) -> bytes:
        """A line; the last one has the figures."""
        self._first = self._first or time.perf_counter_ns()
        out = b""
        said = self._said
        for part in parts_of(piece):
            said.add(part)
        calls, is_last = said.calls, piece.finish_reason is not None
        said.calls = calls if is_last else {}  # calls are sent when they are whole
        if said.text or said.reasoning or said.calls:
            line = {**_head(self._name), **_content(said, self._is_chat), "done": False}
            out = _line(line)
        self._said = Said([])
        self._said.calls = calls
        if is_last:
            out += _line(self._last(Said([]), piece.finish_reason))
        return out

    def end(self) -> bytes:
        """Nothing comes last."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """An error in place of the rest."""
        return _line({"error": error.message})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
