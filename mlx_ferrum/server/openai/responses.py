"""`/v1/responses`."""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, error_object, read, respond
from ..loop import Likely
from ..reply import Answer, Piece
from ..service import Service
from . import form
from .chat import EFFORTS, IGNORED, TOP
from .items import messages
from .messages import render, template_arguments
from .store import Store

REFUSED = ("background", "conversation", "prompt", "tools", "max_tool_calls")
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")


async def create(request: Request) -> ASGIApp:
    """A response to a conversation, of which the server may know the beginning."""
    service: Service = request.app.state.service
    store: Store = request.app.state.store
    fields = await read(request)
    service.check_name(fields.text("model", service.name))
    chosen = sampling.read(fields, service.recommended, "max_output_tokens")
    _refuse(fields)
    stream, keeps = fields.flag("stream"), fields.flag("store", True)
    reasoning = fields.object("reasoning")
    effort = reasoning.get("effort")
    if effort is not None and effort not in EFFORTS:
        raise reasoning.error("effort", effort, f"one of {', '.join(EFFORTS)}")
    top = _top(fields)
    before = fields.get("previous_response_id")
    earlier = (
        []
        if before is None
        else store.get(fields.text("previous_response_id"), "previous_response_id").messages
    )
    known = [*earlier, *messages(fields)]
    shown = _shown(fields, service.name, chosen.sampler, chosen.limit)
    arguments = template_arguments(fields)
    fields.finish([*IGNORED - {"store"}, "stream_options", "truncation"])
    instructions = shown["instructions"]
    system = [{"role": "system", "content": instructions}] if instructions else []
    tokenizer = service.loaded.tokenizer
    prompt = await service.prepare(render, tokenizer, [*system, *known], arguments, effort=effort)
    answer = service.submit([prompt.ids], chosen, top=top)
    reply = ResponseReply(service, answer, shown, known, store if keeps else None)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


def _refuse(fields: Fields) -> None:
    for name in REFUSED:
        fields.refuse(name)
    fields.refuse("tool_choice", ["none", "auto"])
    fields.refuse("truncation", ["disabled"])
    format = fields.object("text")
    format.refuse("format", [{"type": "text"}])


def _top(fields: Fields) -> int | None:
    """How many of the likeliest tokens to list; None: no log-probabilities."""
    included = fields.texts("include")
    for name in included:
        if name not in INCLUDED:
            raise fields.error("include", name, f"one of {', '.join(INCLUDED)}")
    top: int = fields.whole("top_logprobs", 0, 0, TOP)
    return top if LOGPROBS in included or top else None


def _shown(fields: Fields, name: str, sampler: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """What a response says of its request."""
    reasoning = fields.object("reasoning")
    return {
        "id": form.new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.text("instructions", "") or None,
        "max_output_tokens": limit,
        "metadata": fields.get("metadata", {}),
        "model": name,
        "output": [],
        "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
        "previous_response_id": fields.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": fields.flag("store", True),
        "temperature": sampler["temp"],
        "text": {"format": {"type": "text"}},
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": [],
        "top_p": sampler["top_p"],
        "truncation": "disabled",
        "usage": None,
        "user": fields.get("user"),
    }


async def retrieve(request: Request) -> Response:
    """A response that is stored."""
    store: Store = request.app.state.store
    return respond(store.get(request.path_params["id"]).response)


async def delete(request: Request) -> Response:
    """Forget a response."""
    store: Store = request.app.state.store
    id = request.path_params["id"]
    store.delete(id)
    return respond({"id": id, "object": "response", "deleted": True})


class ResponseReply:
    """Writes the response, whole or in events."""

    def __init__(
        self,
        service: Service,
        answer: Answer,
        shown: dict[str, Any],
        known: list[dict[str, Any]],
        store: Store | None,
    ) -> None:
        """shown: the response without its output. known: the conversation before it. store: where it is kept."""
        self._answer, self._shown, self._known, self._store = answer, shown, known, store
        self._tokenizer = service.loaded.tokenizer
        self._id = form.new_id("msg_")
        self._texts: list[str] = []
        self._tokens: list[tuple[int, Likely]] = []
        self._number = 0  # of the next event

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        [piece] = pieces
        return self._ended(piece.text, piece.tokens, piece.finish_reason)

    def _ended(
        self, text: str, tokens: list[tuple[int, Likely]], reason: str | None
    ) -> dict[str, Any]:
        """The response once the text has ended; kept if that is wanted."""
        is_cut = reason == "length"
        answer = self._answer
        prompt, generated = sum(answer.prompts), answer.generated
        response = {
            **self._shown,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._item(text, tokens, "incomplete" if is_cut else "completed")],
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": answer.cached},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + generated,
            },
        }
        if self._store is not None:
            said = {"role": "assistant", "content": text}
            self._store.put(response, [*self._known, said])
        return response

    def _item(self, text: str, tokens: list[tuple[int, Likely]], status: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._id,
            "status": status,
            "role": "assistant",
            "content": [self._part(text, tokens)],
        }

    def _part(self, text: str, tokens: list[tuple[int, Likely]]) -> dict[str, Any]:
        logprobs = self._logprobs(tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, tokens: list[tuple[int, Likely]]) -> list[Any]:
        found: list[Any] = form.chat_logprobs(self._tokenizer, tokens)["content"]
        return found

    def _event(self, kind: str, **values: Any) -> bytes:
        body = json.dumps({"type": kind, "sequence_number": self._number, **values})
        self._number += 1
        return f"event: {kind}\ndata: {body}\n\n".encode()

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": 0, "content_index": 0}

    def begin(self) -> bytes:
        """The response, its item and its part, all of them empty."""
        item = {**self._item("", [], "in_progress"), "content": []}
        return (
            self._event("response.created", response=self._shown)
            + self._event("response.in_progress", response=self._shown)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._event("response.content_part.added", **self._place(), part=self._part("", []))
        )

    def piece(self, index: int, piece: Piece) -> bytes:
        """A delta, and all that ends."""
        self._texts.append(piece.text)
        self._tokens += piece.tokens
        out = b""
        if piece.text or piece.tokens:
            out = self._delta(piece)
        if piece.finish_reason is not None:
            out += self._finish(piece.finish_reason)
        return out

    def _delta(self, piece: Piece) -> bytes:
        logprobs = json.dumps(self._logprobs(piece.tokens)) if piece.tokens else "[]"
        kind = "response.output_text.delta"
        body = (
            f'{{"type": "{kind}", "sequence_number": {self._number}, "item_id": "{self._id}", "output_index": 0, '
            f'"content_index": 0, "delta": {form.quoted(piece.text)}, "logprobs": {logprobs}}}'
        )
        self._number += 1
        return f"event: {kind}\ndata: {body}\n\n".encode()

    def _finish(self, reason: str) -> bytes:
        text = "".join(self._texts)
        response = self._ended(text, self._tokens, reason)
        [item] = response["output"]
        [part] = item["content"]
        done = {**self._place(), "text": text, "logprobs": part["logprobs"]}
        return (
            self._event("response.output_text.done", **done)
            + self._event("response.content_part.done", **self._place(), part=part)
            + self._event("response.output_item.done", output_index=0, item=item)
            + self._event(f"response.{response['status']}", response=response)
        )

    def end(self) -> bytes:
        """Nothing comes after the response."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """The response has failed."""
        inner = error_object(error, "")["error"]
        told = {"code": inner["code"] or inner["type"], "message": inner["message"]}
        response = {**self._shown, "status": "failed", "error": told}
        return self._event("response.failed", response=response)
