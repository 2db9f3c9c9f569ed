"""Which models there are, how the server is, and tokens of texts."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mlx_ferrum.generate.prompt import encode_prompt
from mlx_ferrum.tokenizer import Tokenizer

from ..entries import Entry
from ..fields import Fields
from ..http import choose, read, respond
from ..models import Models
from .messages import messages, render, template_arguments


def described(models: Models, entry: Entry, name: str) -> dict[str, Any]:
    """A model, as lists of them have it."""
    found = {"id": name, "object": "model", "created": entry.created, "owned_by": "mlx_ferrum"}
    found["loaded"] = models.service(entry.name) is not None
    about = models.about(entry)
    if about is not None and about.context_length is not None:
        found["context_length"] = about.context_length
    return found


async def models(request: Request) -> Response:
    """`/v1/models`."""
    known: Models = request.app.state.models
    found = [
        described(known, entry, name)
        for entry in await known.entries()
        for name in (entry.name, *(alias for alias in entry.aliases if "*" not in alias))
    ]
    return respond({"object": "list", "data": found})


async def model(request: Request) -> Response:
    """`/v1/models/NAME`; all of them without a name."""
    known: Models = request.app.state.models
    name = request.path_params["name"]
    if not name:
        return await models(request)
    return respond(described(known, await known.find(name), name))


async def health(request: Request) -> Response:
    """`/health`: 200 if texts can be asked for."""
    known: Models = request.app.state.models
    return respond({"status": known.state}, 200 if known.state == "ready" else 503)


async def metrics(request: Request) -> Response:
    """`/metrics`."""
    known: Models = request.app.state.models
    content = await known.report()
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


async def tokenize(request: Request) -> Response:
    """`/tokenize`: ids of a text (`content` or `prompt`) or of `messages`."""
    fields = await read(request)
    service = await choose(request, fields)
    loaded = service.loaded
    is_llama = fields.get("content") is not None  # its names and defaults, or vLLM's
    text = fields.text("content", fields.text("prompt", ""))
    special = fields.flag("add_special", fields.flag("add_special_tokens", not is_llama))
    parse, arguments = fields.flag("parse_special", True), template_arguments(fields)
    if fields.get("messages") is None:
        ids = await service.prepare(_encode, loaded.tokenizer, text, special, parse)
    else:
        if text:
            raise fields.error("messages", fields.get("messages"), "none with content or prompt")
        rendered = await service.prepare(render, loaded.tokenizer, messages(fields), arguments)
        ids = rendered.ids
    tokens: list[Any] = ids
    if fields.flag("with_pieces"):
        spelled = [loaded.tokenizer.piece(id)[0].decode("utf-8", "replace") for id in ids]
        tokens = [{"id": id, "piece": piece} for id, piece in zip(ids, spelled, strict=True)]
    fields.finish()
    most = loaded.model.args.context_length
    return respond({"tokens": tokens, "count": len(ids), "max_model_len": most})


def _encode(tokenizer: Tokenizer, text: str, special: bool, parse: bool) -> list[int]:
    if special and parse and text:
        return encode_prompt(tokenizer, text)
    return tokenizer.encode(text, add_special=special, parse_special=parse)


async def detokenize(request: Request) -> Response:
    """`/detokenize`: the text of ids."""
    fields = await read(request)
    service = await choose(request, fields)
    ids = _ids(fields)
    fields.finish()
    text = await service.prepare(service.loaded.tokenizer.decode, ids)
    return respond({"content": text, "prompt": text})


def _ids(fields: Fields) -> list[int]:
    ids = fields.items("tokens")
    if not all(type(id) is int for id in ids):
        raise fields.error("tokens", ids, "a list of token ids")
    return ids
