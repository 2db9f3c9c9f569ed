"""Bodies, errors and streams: what the endpoints of all clients share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial, wraps
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .entries import Entry
from .errors import RequestError, reported
from .fields import Fields
from .models import Models
from .reply import Answer, Piece
from .service import Service

KEEP_ALIVE = b": keep-alive\n\n"
BODY_SECONDS = 60.0  # for a client to send its body
BEGUN = "mlx_ferrum.begun"  # in the scope of a response that has begun already
GONE = 499  # nginx's status for a client that left
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


async def read(request: Request) -> Fields:
    """The fields of a JSON body. Raises RequestError."""
    try:
        body = await asyncio.wait_for(request.body(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RequestError(
            f"the body did not come within {BODY_SECONDS:g} seconds", status=408
        ) from None
    except ClientDisconnect:
        raise RequestError("the client left before its body was whole", status=GONE) from None
    try:
        return Fields(json.loads(body, parse_constant=_refuse))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise _invalid("nested too deeply") from None
    except ValueError:  # of `int`, which limits the work
        raise _invalid("a number has too many digits") from None


def using(
    endpoint: Callable[[Request], Awaitable[ASGIApp]],
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """An endpoint that may choose models: each is in use until it returns, and longer while an answer is made.

    A stream that waits long for its model begins before the endpoint returns, with comments.
    """

    async def served(request: Request) -> ASGIApp:
        async with AsyncExitStack() as request.state.uses:
            return await endpoint(request)

    @wraps(endpoint)
    async def wrapped(request: Request) -> ASGIApp:
        models: Models = request.app.state.models
        request.state.is_late = is_late = asyncio.get_running_loop().create_future()
        app = asyncio.ensure_future(served(request))
        either: list[asyncio.Future[Any]] = [app, is_late]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            app.cancel()
            raise
        return app.result() if app.done() else Late(app, models.limits.idle)

    return wrapped


async def choose(request: Request, fields: Fields, stream: bool = False) -> Service:
    """The model that the field `model` names, once it is loaded; its `loaded` is for texts. Raises RequestError.

    stream: whether the response is a stream of events
    """
    models: Models = request.app.state.models
    entry = await models.find(model_name(request, fields))
    if not stream:
        return await use(request, entry)
    is_late: asyncio.Future[None] = request.state.is_late
    timer = asyncio.get_running_loop().call_later(models.limits.idle, is_late.set_result, None)
    try:
        return await use(request, entry)
    finally:
        timer.cancel()


async def use(request: Request, entry: Entry) -> Service:
    """What serves a model, once it is loaded; the endpoint must be one of `using`. Raises RequestError."""
    models: Models = request.app.state.models
    uses: AsyncExitStack = request.state.uses
    service: Service = await uses.enter_async_context(
        models.use(entry, partial(left, request.receive))
    )
    return service


def model_name(request: Request, fields: Fields) -> str:
    """The field `model`, "" if it is absent; Ollama's clients add a tag."""
    name: str = fields.text("model", "")
    return name.removesuffix(":latest") if request.url.path.startswith("/api/") else name


def _refuse(name: str) -> None:
    raise _invalid(f"{name} is no JSON")


def _invalid(why: str) -> RequestError:
    return RequestError(f"the body is not valid JSON ({why})", code="invalid_json")


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of JSON."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status, headers, "application/json")


def refusal(error: RequestError, path: str) -> Response:
    """An error in the form of the client that uses a path."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return respond(error_object(error, path), error.status, headers)


def error_object(error: RequestError, path: str) -> dict[str, Any]:
    """The body of `refusal`."""
    kind = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}
    kind[429] = "rate_limit_error"
    if path.startswith("/v1/messages"):
        fallback = "invalid_request_error" if error.status < 500 else "api_error"
        name = kind.get(error.status, fallback)
        return {"type": "error", "error": {"type": name, "message": error.message}}
    if path.startswith("/api/"):
        return {"error": error.message}
    name = "invalid_request_error" if error.status < 500 else "server_error"
    if error.status in (401, 429):
        name = kind[error.status]
    inner = {"message": error.message, "type": name, "param": error.param, "code": error.code}
    return {"error": inner}


def error_event(error: RequestError, path: str) -> bytes:
    """An error as the only event of a stream of the client that uses a path."""
    body = error_object(error, path)
    if path.startswith("/v1/messages"):
        return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
    if path != "/v1/responses":
        return f"data: {json.dumps(body)}\n\n".encode()
    inner = {name: body["error"][name] for name in ("code", "message", "param")}
    body = {"type": "error", "sequence_number": 0, **inner}
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()


async def left(receive: Receive) -> None:
    """Wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def watched(receive: Receive, answer: Answer) -> None:
    """Wait for the client to leave, and free what it asked for."""
    await left(receive)
    answer.close()


async def finished(request: Request, answer: Answer) -> list[Piece] | None:
    """All of an answer, one piece for each text; None if the client left. Raises RequestError for an error."""
    watcher = asyncio.ensure_future(watched(request.receive, answer))
    try:
        while not answer.is_closed:
            await answer.wait()
    finally:
        watcher.cancel()
        answer.close()
    if answer.error is not None:
        raise reported(answer.error)
    pieces = [reply.take() for reply in answer.replies]
    whole = [piece for piece in pieces if piece is not None and piece.finish_reason is not None]
    return whole if len(whole) == len(pieces) else None


async def answered(
    request: Request, answer: Answer, make: Callable[[list[Piece]], Any]
) -> Response:
    """A response of what `make` makes of all texts."""
    pieces = await finished(request, answer)
    return Response(status_code=GONE) if pieces is None else respond(make(pieces))


class Writer(Protocol):
    """Writes the bytes of a stream."""

    def begin(self) -> bytes:
        """What comes before the first token."""

    def piece(self, index: int, piece: Piece) -> bytes:
        """A piece of text `index`."""

    def end(self) -> bytes:
        """What comes after all texts."""

    def error(self, error: RequestError) -> bytes:
        """The stream ends with an error."""


class Stream:
    """A response that is sent while texts are made. A client that leaves frees them.

    It begins with the first token, or when `Answer.wait` finds that nothing came for a while: what fails before that is
    refused with a status, unless comments have been sent (`Late`).
    """

    def __init__(
        self,
        answer: Answer,
        writer: Writer,
        headers: list[tuple[bytes, bytes]] = HEADERS,
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        self._answer, self._writer = answer, writer
        self._headers, self._keep_alive = headers, keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        answer = self._answer
        watcher = asyncio.ensure_future(watched(receive, answer))
        try:
            is_new = await answer.wait()
            can_refuse = answer.is_closed and not answer.generated and BEGUN not in scope
            if can_refuse and answer.error is not None:
                await refusal(reported(answer.error), scope["path"])(scope, receive, send)
                return
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await send(start)
            await self._send(send, is_new)
        finally:
            watcher.cancel()
            answer.close()

    async def _send(self, send: Callable[[Any], Awaitable[None]], is_new: bool) -> None:
        answer, writer = self._answer, self._writer
        data = writer.begin()
        while True:
            data += self._pieces() if is_new else self._keep_alive
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if answer.is_closed and not answer.has_news:
                break
            is_new, data = await answer.wait(), b""
        error = answer.error
        data = writer.end() if error is None else writer.error(reported(error))
        await send({"type": "http.response.body", "body": data})

    def _pieces(self) -> bytes:
        """What is new of all texts."""
        replies, writer = self._answer.replies, self._writer
        taken = ((i, reply.take()) for i, reply in enumerate(replies) if reply.error is None)
        return b"".join([writer.piece(i, piece) for i, piece in taken if piece is not None])


class Late:
    """A stream that begins while its model is loaded: comments, until the endpoint has returned the rest."""

    def __init__(self, app: asyncio.Future[ASGIApp], idle: float) -> None:
        """app: the rest. idle: seconds between comments."""
        self._app, self._idle = app, idle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. An error comes as an event, as the status is sent already."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})

        async def go_on(message: Message) -> None:
            if message["type"] != "http.response.start":
                await send(message)

        try:
            while not self._app.done():
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                await asyncio.wait([self._app], timeout=self._idle)
        finally:
            self._app.cancel()
        try:
            app = self._app.result()
        except RequestError as error:
            await send({"type": "http.response.body", "body": error_event(error, scope["path"])})
            return
        await app({**scope, BEGUN: True}, receive, go_on)
