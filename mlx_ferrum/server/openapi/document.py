"""The description as a whole: one operation for each route."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import BaseRoute, Route

import mlx_ferrum

from . import requests, responses
from .schema import STRING, Schema, event

JSON, EVENTS, LINES = "application/json", "text/event-stream", "application/x-ndjson"
GENERATES = ("429", "500", "504")  # errors of endpoints that generate texts


@dataclass(frozen=True)
class Operation:
    """What an endpoint takes and gives.

    response: JSON, unless `content` has it by media type
    body: of the request; None: there is none
    statuses: of errors, beside those that hold for all
    """

    response: Schema = field(default_factory=lambda: {"type": "object"})
    body: Schema | None = None
    content: dict[str, Schema] = field(default_factory=dict)
    statuses: tuple[str, ...] = ()


def _generates(body: Schema, response: Schema, streamed: str, item: Schema) -> Operation:
    content = {JSON: response, streamed: item}
    return Operation(body=body, content=content, statuses=("404", *GENERATES))


def _takes(body: Schema, response: Schema, *statuses: str) -> Operation:
    return Operation(response, body, statuses=("404", *statuses))


OPERATIONS = {
    "/v1/chat/completions": _generates(
        requests.CHAT,
        responses.CHAT,
        EVENTS,
        event({"anyOf": [responses.CHAT_CHUNK, responses.OPENAI_ERROR]}, "[DONE]"),
    ),
    "/v1/completions": _generates(
        requests.COMPLETION,
        responses.COMPLETION_WHOLE,
        EVENTS,
        event({"anyOf": [responses.COMPLETION_CHUNK, responses.OPENAI_ERROR]}, "[DONE]"),
    ),
    "/v1/responses": _generates(
        requests.RESPONSE,
        responses.RESPONSE,
        EVENTS,
        event({"anyOf": [responses.RESPONSE_EVENT, responses.RESPONSE_ERROR_EVENT]}),
    ),
    "/v1/responses/input_tokens": _takes(requests.RESPONSE_COUNTED, responses.RESPONSE_COUNTED),
    "GET /v1/responses/{id}": Operation(responses.RESPONSE, statuses=("404",)),
    "DELETE /v1/responses/{id}": Operation(responses.DELETED, statuses=("404",)),
    "/v1/embeddings": _takes(requests.EMBEDDINGS, responses.EMBEDDINGS),
    "/v1/messages": _generates(
        requests.ANTHROPIC, responses.MESSAGE, EVENTS, event(responses.MESSAGE_EVENT)
    ),
    "/v1/messages/count_tokens": _takes(requests.COUNTED, responses.COUNTED),
    "/api/chat": _generates(
        requests.OLLAMA_CHAT,
        responses.OLLAMA_CHAT,
        LINES,
        {"anyOf": [responses.OLLAMA_CHAT, responses.OLLAMA_ERROR]},
    ),
    "/api/generate": _generates(
        requests.GENERATE,
        responses.GENERATED,
        LINES,
        {"anyOf": [responses.GENERATED, responses.OLLAMA_ERROR]},
    ),
    "/api/embed": _takes(requests.EMBED, responses.EMBEDDED),
    "/api/show": _takes(requests.SHOW, responses.SHOWN),
    "/api/tags": Operation(responses.TAGS),
    "/api/ps": Operation(responses.RUNNING),
    "/api/version": Operation(responses.VERSION),
    "/v1/models": Operation(responses.MODELS),
    "/v1/models/{name}": Operation(responses.MODEL, statuses=("404",)),
    "/tokenize": _takes(requests.TOKENIZE, responses.TOKENIZED),
    "/detokenize": _takes(requests.DETOKENIZE, responses.DETOKENIZED),
    "/health": Operation(responses.HEALTH),
    "/metrics": Operation(content={"text/plain": STRING}),
    "/": Operation(content={"text/html": STRING}),
    "/openapi.json": Operation(),
}
REFUSALS = {
    "400": "The request is wrong.",
    "401": "The API key is missing or wrong.",
    "403": "Pages of this origin may not ask.",
    "404": "There is no such model or response.",
    "405": "The path takes other methods.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "429": "Too many texts run or wait.",
    "500": "The server failed.",
    "503": "The model is being loaded, or has failed.",
    "504": "The request took too long.",
}


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The description of routes. Raises KeyError for a route that is not described."""
    paths: dict[str, Any] = {}
    for route in routes:
        if not isinstance(route, Route):
            continue
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            found = OPERATIONS.get(f"{method} {path}") or OPERATIONS[path]
            paths.setdefault(path, {})[method.lower()] = _operation(route, method, path, found)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mlx_ferrum",
            "version": mlx_ferrum.__version__,
            "description": "Endpoints of OpenAI's, Anthropic's and Ollama's APIs. In the body of a request, "
            "null stands for a field that is absent, and unknown fields are ignored.",
        },
        "paths": paths,
        "security": [{}, {"bearer": []}, {"key": []}],
        "components": {
            "schemas": {
                "OpenAIError": responses.OPENAI_ERROR,
                "AnthropicError": responses.ANTHROPIC_ERROR,
                "OllamaError": responses.OLLAMA_ERROR,
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(route: Route, method: str, path: str, operation: Operation) -> dict[str, Any]:
    content = operation.content or {JSON: operation.response}
    shown = {media: {"schema": schema} for media, schema in content.items()}
    answers: dict[str, Any] = {"200": {"description": "What was asked for.", "content": shown}}
    if path == "/health":
        answers["503"] = {"description": "Texts cannot be asked for.", "content": shown}
    general = ["401", "403", "503"]
    if operation.body is not None:
        general += ["400", "408", "413"]
    for status in sorted({*general, *operation.statuses} - answers.keys()):
        answers[status] = {"description": REFUSALS[status], "content": _error(path)}
    made: dict[str, Any] = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-z0-9]+', '_', path)}".strip("_"),
        "summary": (route.endpoint.__doc__ or path).strip().splitlines()[0],
        "responses": answers,
    }
    names = re.findall(r"{(\w+)}", path)
    if names:
        made["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": STRING} for name in names
        ]
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body}}}
    return made


def _error(path: str) -> dict[str, Any]:
    """The form of errors, which `http.error_object` writes."""
    name = "OpenAIError"
    if path.startswith("/v1/messages"):
        name = "AnthropicError"
    elif path.startswith("/api/"):
        name = "OllamaError"
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
