"""What holds for all requests: origins, API keys, the size of bodies, errors, the access log."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import RequestError
from .http import refusal
from .metrics import Metrics

OPEN = ("/", "/health")  # no key needed
LOCAL = ("localhost", "127.0.0.1", "::1")
FAILED = RequestError("the server failed; its log says how", status=500, code="server_error")
access = logging.getLogger("mlx_ferrum.server.access")
errors = logging.getLogger("mlx_ferrum.server")


@dataclass(frozen=True)
class Rules:
    """Who may ask, and for how much.

    keys: one of them has to come with each request; none: everyone may ask
    origins: pages of these origins may ask; "*" stands for all, and needs keys or a choice of the user
    body: bytes of a body
    is_local: whether only this machine can reach the server
    """

    keys: Sequence[str] = ()
    origins: Collection[str] = ()
    body: int = 32 << 20
    is_local: bool = True


class Gate:
    """Wraps the application."""

    def __init__(
        self, app: ASGIApp, rules: Rules, metrics: Metrics, paths: Collection[str]
    ) -> None:
        """paths: of the routes, for the metrics."""
        self._app, self._rules, self._metrics, self._paths = app, rules, metrics, set(paths)
        self._keys = [key.encode() for key in rules.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(self._rules, scope, receive, send)
        try:
            await self._served(visit)
        finally:
            path = scope["path"]
            known = path if path in self._paths else "other"
            self._metrics.requested(known, visit.status)
            seconds = time.perf_counter() - visit.since
            shown = path.encode("unicode_escape").decode()[:200]
            method, status = scope["method"], visit.status
            access.info("%s %s %d %.3f s %s", method, shown, status, seconds, visit.id)

    async def _served(self, visit: Visit) -> None:
        scope = visit.scope
        try:
            visit.check_origin()
            if visit.is_preflight:
                await Response(status_code=204)(scope, visit.receive, visit.send)
                return
            self._check_key(visit)
            visit.check_size(visit.length)
            await self._app(scope, visit.receive, visit.send)
        except RequestError as error:
            await visit.refuse(error)
        except Exception:  # noqa: BLE001 - the client gets an answer, the log gets all
            errors.exception("%s %s failed", scope["method"], scope["path"])
            await visit.refuse(FAILED)

    def _check_key(self, visit: Visit) -> None:
        if not self._keys or visit.scope["path"] in OPEN:
            return
        scheme, _, token = visit.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else visit.headers.get("x-api-key", "")
        found = given.encode("utf-8", "replace")
        # every key is compared, so that the time does not tell which one is alike
        if not sum(hmac.compare_digest(found, key) for key in self._keys):
            raise RequestError(
                "the API key is missing or wrong", status=401, code="invalid_api_key"
            )


class Visit:
    """One request.

    id: in the log, and in headers that OpenAI's and Anthropic's clients show
    status: of the response; 499 until there is one
    """

    def __init__(self, rules: Rules, scope: Scope, receive: Receive, send: Send) -> None:
        self.rules, self.scope = rules, scope
        self._receive, self._send = receive, send
        self.headers = Headers(scope=scope)
        self.status = 499
        self.since = time.perf_counter()
        self._read = 0
        self._has_begun = False
        self.id = f"req_{secrets.token_hex(12)}"
        self._added = [(name, self.id.encode()) for name in (b"x-request-id", b"request-id")]

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks if it may ask."""
        return self.scope["method"] == "OPTIONS" and "origin" in self.headers

    @property
    def length(self) -> int:
        """Bytes of the body, as far as the client says."""
        given = self.headers.get("content-length", "0")
        return int(given) if given.isdecimal() else 0

    def check_size(self, count: int) -> None:
        """Raises RequestError for a body of so many bytes if that is too much."""
        if count > self.rules.body:
            text = f"the body has more than {self.rules.body} bytes"
            raise RequestError(text, status=413, code="request_too_large")

    def check_origin(self) -> None:
        """Raises RequestError for a page that may not ask: any page that a browser shows could."""
        origin = self.headers.get("origin")
        if origin is None:
            return
        origins = self.rules.origins
        if "*" in origins:
            self._allow(b"*")  # without credentials: browsers then send none of their own
        elif origin in origins:
            self._allow(origin.encode("latin-1", "replace"))
        elif not self._is_own(origin):
            raise RequestError(
                "pages of this origin may not ask (--cors-origin allows them)",
                status=403,
                code="origin_not_allowed",
            )

    def _is_own(self, origin: str) -> bool:
        """Whether a page comes from this server. A name that only points to this machine is not its own."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        is_same = parts.netloc == self.headers.get("host", "")
        return is_same and (not self.rules.is_local or parts.hostname in LOCAL)

    def _allow(self, origin: bytes) -> None:
        self._added += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if self.is_preflight:
            asked = self.headers.get("access-control-request-headers", "")
            self._added += [
                (b"access-control-allow-methods", b"GET, POST, DELETE"),
                (b"access-control-allow-headers", asked.encode("latin-1", "replace")),
                (b"access-control-max-age", b"600"),
            ]

    async def receive(self) -> Message:
        """A part of the body. Raises RequestError once it is too long."""
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self.check_size(self._read)
        return message

    async def send(self, message: Message) -> None:
        """A part of the response."""
        if message["type"] == "http.response.start":
            self.status, self._has_begun = message["status"], True
            message = {**message, "headers": [*message["headers"], *self._added]}
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Send an error, unless a response has begun."""
        if not self._has_begun:
            await refusal(error, self.scope["path"])(self.scope, self.receive, self.send)
