"""The routes of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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
from .http import refusal
from .ollama import models as ollama_models
from .ollama import texts
from .openai import chat, completions, embeddings, models, responses
from .openai.store import Store
from .openapi import description
from .service import Service

ROUTES: list[tuple[str, str, Callable[..., object]]] = [
    ("POST", "/v1/chat/completions", chat.chat),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/responses", responses.create),
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
    ("GET", "/api/version", ollama_models.version),
    ("GET", "/v1/models", models.models),
    ("GET", "/v1/models/{name:path}", models.model),
    ("POST", "/tokenize", models.tokenize),
    ("POST", "/detokenize", models.detokenize),
    ("GET", "/health", models.health),
    ("GET", "/metrics", models.metrics),
    ("GET", "/openapi.json", description),
]


def make(
    service: Service, rules: Rules, ended: Callable[[Exception], None] | None = None
) -> ASGIApp:
    """The application. ended: called with what ends the engine."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start(ended)
        yield
        await service.close()

    app = Starlette(
        routes=[Route(path, function, methods=[method]) for method, path, function in ROUTES],
        lifespan=lifespan,
        exception_handlers={RequestError: _refused, HTTPException: _not_found, Exception: _failed},
    )
    app.state.service, app.state.store = service, Store()
    return Gate(app, rules, service.metrics, [path for _, path, _ in ROUTES])


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return refusal(error, request.url.path)


async def _failed(request: Request, _: Exception) -> Response:
    """The gate gets the error itself, and logs it."""
    return refusal(FAILED, request.url.path)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path[:100]}: {error.detail}"
    response = refusal(RequestError(text, status=error.status_code), request.url.path)
    response.headers.update(error.headers or {})
    return response
