"""The routes of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from .anthropic import messages
from .errors import RequestError
from .gate import FAILED, Gate, Rules
from .http import refusal, using
from .models import Models
from .ollama import models as ollama_models
from .ollama import texts
from .openai import chat, completions, embeddings, responses
from .openai import models as openai_models
from .openai.store import Store
from .openapi import description
from .page import index

ROUTES: list[tuple[str, str, Callable[[Request], Awaitable[ASGIApp]]]] = [
    ("GET", "/", index.page),
    ("POST", "/v1/chat/completions", chat.chat),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/responses", responses.create),
    ("POST", "/v1/responses/input_tokens", responses.count_tokens),
    ("GET", "/v1/responses/{id}", responses.retrieve),
    ("DELETE", "/v1/responses/{id}", responses.delete),
    ("POST", "/v1/embeddings", embeddings.create),
    ("POST", "/v1/messages", messages.messages),
    ("POST", "/v1/messages/count_tokens", messages.count_tokens),
    ("POST", "/api/chat", texts.chat),
    ("POST", "/api/generate", texts.generate),
    ("POST", "/api/embed", ollama_models.embed),
    ("POST", "/api/show", ollama_models.show),
    ("GET", "/api/tags", ollama_models.tags),
    ("GET", "/api/ps", ollama_models.running),
    ("GET", "/api/version", ollama_models.version),
    ("GET", "/v1/models", openai_models.models),
    ("GET", "/v1/models/{name:path}", openai_models.model),
    ("POST", "/tokenize", openai_models.tokenize),
    ("POST", "/detokenize", openai_models.detokenize),
    ("GET", "/health", openai_models.health),
    ("GET", "/metrics", openai_models.metrics),
    ("GET", "/openapi.json", description),
]


def make(models: Models, rules: Rules) -> ASGIApp:
    """The application."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        models.start()
        yield
        await models.close()

    app = Starlette(
        routes=[
            Route(path, using(function), methods=[method]) for method, path, function in ROUTES
        ],
        lifespan=lifespan,
        exception_handlers={RequestError: _refused, HTTPException: _not_found, Exception: _failed},
    )
    app.state.models, app.state.store = models, Store()
    return Gate(app, rules, models.metrics, [path for _, path, _ in ROUTES])


def _meant(path: str) -> str | None:
    """The route of a path without its /v1, or with another one before it: clients add a part to their base URL."""
    found = [known for _, known, _ in ROUTES[1:] if path.endswith(known.removeprefix("/v1"))]
    return max(found, key=len, default=None)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return refusal(error, request.url.path)


async def _failed(request: Request, _: Exception) -> Response:
    """The gate gets the error itself, and logs it."""
    return refusal(FAILED, request.url.path)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    text = f"{request.method} {path[:100]}: {error.detail}"
    if error.status_code == 404 and (meant := _meant(path)) is not None:
        text += f", expected {meant}"
    response = refusal(RequestError(text, status=error.status_code), request.url.path)
    response.headers.update(error.headers or {})
    return response
