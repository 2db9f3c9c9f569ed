"""The OpenAPI description of the server, which it publishes itself."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..http import respond
from .document import document


async def description(request: Request) -> Response:
    """The description of all endpoints."""
    return respond(document(request.app.routes))
