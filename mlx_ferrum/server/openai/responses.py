"""`/v1/responses`, and how many tokens the prompt of one has."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from mlx_ferrum.replies import Piece as Part

from .. import sampling
from ..errors import RequestError
from ..fields import Fields
from ..http import Stream, answered, choose, error_object, read, respond
from ..parts import parts_of
from ..reply import Answer, Piece
from ..service import Service
from . import form
from .chat import EFFORTS, IGNORED, TOP
from .constraint import Form, Tools, asked_tools, constrain, form_of
from .items import messages
from .messages import Rendered, render, template_arguments
from .output import Output
from .store import Store

REFUSED = ("background", "conversation", "prompt", "max_tool_calls")
LOGPROBS = "message.output_text.logprobs"
INCLUDED = (LOGPROBS, "reasoning.encrypted_content")


async def create(request: Request) -> ASGIApp:
    """A response to a conversation, of which the server may know the beginning."""
    store: Store = request.app.state.store
    fields = await read(request)
    stream = fields.flag("stream")
    service = await choose(request, fields, stream)
    chosen = sampling.read(fields, service.recommended, "max_output_tokens")
    asked = _asked(fields, store)
    keeps = fields.flag("store", True)
    top = _top(fields)
    shown = _shown(fields, service.name, chosen.sampler, chosen.limit)
    fields.finish([*IGNORED - {"store"}, "stream_options", "truncation"])
    prompt = await asked.prompt(service)
    await constrain(service, chosen, prompt, asked.form, asked.tools)
    answer = service.submit([prompt.ids], chosen, top=top, parser=prompt.parser)
    reply = ResponseReply(service, answer, shown, asked.known, store if keeps else None)
    return Stream(answer, reply) if stream else await answered(request, answer, reply.whole)


async def count_tokens(request: Request) -> Response:
    """The number of tokens of a response's prompt."""
    fields = await read(request)
    service = await choose(request, fields)
    asked = _asked(fields, request.app.state.store)
    fields.finish(IGNORED)
    prompt = await asked.prompt(service)
    return respond({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})


@dataclass(frozen=True)
class Asked:
    """What decides on the prompt of a response, and on the form of its output.

    known: the conversation, without instructions
    arguments: of the template
    """

    known: Sequence[dict[str, Any]]
    instructions: str
    tools: Tools
    form: Form | None
    effort: str | None
    arguments: Mapping[str, Any]

    async def prompt(self, service: Service) -> Rendered:
        """The prompt. Raises RequestError if the template refuses."""
        given = self.instructions
        system = [{"role": "system", "content": given}] if given else []
        return await service.prepare(
            render,
            service.loaded.tokenizer,
            [*system, *self.known],
            self.arguments,
            effort=self.effort,
            tools=self.tools.offered,
        )


def _asked(fields: Fields, store: Store) -> Asked:
    """Raises RequestError for what cannot be honoured, and for an earlier response that is not in the store."""
    for name in REFUSED:
        fields.refuse(name)
    fields.refuse("truncation", ["disabled"])
    tools = asked_tools(fields, _tools(fields))
    format = fields.object("text").object("format")
    form = form_of(format, format)
    reasoning = fields.object("reasoning")
    effort = reasoning.get("effort")
    if effort is not None and effort not in EFFORTS:
        raise reasoning.error("effort", effort, f"one of {', '.join(EFFORTS)}")
    earlier: Sequence[dict[str, Any]] = ()
    if fields.get("previous_response_id") is not None:
        name = "previous_response_id"
        earlier = store.get(fields.text(name), name).messages
    known = [*earlier, *messages(fields)]
    instructions = fields.text("instructions", "")
    return Asked(known, instructions, tools, form, effort, template_arguments(fields))


def _tools(fields: Fields) -> list[dict[str, Any]]:
    """The field `tools` as a chat template reads it. Raises RequestError for tools that the server would run."""
    found = []
    for i, each in enumerate(fields.items("tools")):
        tool = Fields(each, f"tools[{i}]")
        if tool.text("type") != "function":
            raise tool.error("type", each["type"], "'function'")
        function = {"name": tool.text("name"), "description": tool.text("description", "")}
        function["parameters"] = tool.get("parameters", {"type": "object"})
        found.append({"type": "function", "function": function})
    return found


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
        "text": fields.get("text", {"format": {"type": "text"}}),
        "tool_choice": fields.get("tool_choice", "auto"),
        "tools": fields.items("tools"),
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
        known: Sequence[dict[str, Any]],
        store: Store | None,
    ) -> None:
        """shown: the response without its output. known: the conversation before it. store: where it is kept."""
        self._answer, self._shown, self._known, self._store = answer, shown, known, store
        self._tokenizer = service.loaded.tokenizer
        self._output = Output(self._event)
        self._number = 0  # of the next event

    def whole(self, pieces: list[Piece]) -> dict[str, Any]:
        """All of it."""
        [piece] = pieces
        self.piece(0, piece)
        return self._response

    def _ended(self, reason: str) -> dict[str, Any]:
        """The response once the text has ended; kept if that is wanted."""
        is_cut = reason == "length"
        answer = self._answer
        prompt, generated = sum(answer.prompts), answer.generated
        response = {
            **self._shown,
            "status": "incomplete" if is_cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._output.items,
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": answer.cached},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": answer.reasoning},
                "total_tokens": prompt + generated,
            },
        }
        if self._store is not None:
            self._store.put(response, [*self._known, self._output.message()])
        return response

    def _event(self, kind: str, **values: Any) -> bytes:
        body = json.dumps({"type": kind, "sequence_number": self._number, **values})
        self._number += 1
        return f"event: {kind}\ndata: {body}\n\n".encode()

    def begin(self) -> bytes:
        """The response, still empty."""
        return self._event("response.created", response=self._shown) + self._event(
            "response.in_progress", response=self._shown
        )

    def piece(self, index: int, piece: Piece) -> bytes:
        """Deltas, and all that ends."""
        logprobs = form.chat_logprobs(self._tokenizer, piece.tokens)["content"]
        parts = parts_of(piece) or ([Part("text")] if piece.tokens else [])
        out = b""
        for part in parts:
            out += self._output.add(part, logprobs)
            logprobs = logprobs if part.kind != "text" else []
        if piece.finish_reason is not None:
            is_cut = piece.finish_reason == "length"
            out += self._output.close("incomplete" if is_cut else "completed")
            self._response = self._ended(piece.finish_reason)
            out += self._event(f"response.{self._response['status']}", response=self._response)
        return out

    def end(self) -> bytes:
        """Nothing comes after the response."""
        return b""

    def error(self, error: RequestError) -> bytes:
        """The response has failed."""
        inner = error_object(error, "")["error"]
        told = {"code": inner["code"] or inner["type"], "message": inner["message"]}
        response = {**self._shown, "status": "failed", "error": told}
        return self._event("response.failed", response=response)
