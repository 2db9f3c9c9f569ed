"""A server with scripted replies, and how tests use its page."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import servers
from browser import DRIVER, ENTER, Browser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mlx_ferrum.server import app

chromium = pytest.mark.skipif(DRIVER is None, reason="needs chromedriver")
IDLE = "!document.body.classList.contains('busy')"
LAST = "#log article:last-child"


class Script:
    """What replaces the model.

    deltas: of the next replies; go: whether the last delta is sent; end: what comes after it
    error: a status and a message instead of all this
    asked: the bodies of all requests
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.says()

    def says(self, *texts: str) -> None:
        """Reply with these pieces of text."""
        self.deltas: list[dict[str, Any]] = [{"content": text} for text in texts]
        self.error: tuple[int, str] | None = None
        self.end = "data: [DONE]\n\n"
        self.go = threading.Event()
        self.go.set()

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        self.asked.append(await request.json())
        if self.error:
            return JSONResponse({"error": {"message": self.error[1]}}, self.error[0])
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[str]:
        for i, delta in enumerate([{"role": "assistant", "content": ""}, *self.deltas, {}]):
            while i == len(self.deltas) and not self.go.is_set():
                await anyio.sleep(0.005)
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        yield self.end


@contextmanager
def served(file: Path) -> Iterator[tuple[str, Script]]:
    """The URL of a server whose replies are scripted."""
    script = Script()
    routes: list[Any] = [
        (method, path, script.chat if path == "/v1/chat/completions" else function)
        for method, path, function in app.ROUTES
    ]
    with ExitStack() as stack:
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # of this server's routes, not of others made meanwhile
            patch.setattr(app, "ROUTES", routes)
            found = stack.enter_context(servers.served(file))
        yield found.url, script


@contextmanager
def watched(browser: Browser) -> Iterator[None]:
    """The page asks no foreign host, and does nothing that its policy forbids."""
    browser.log()
    browser.requested()
    try:
        yield
    finally:
        urls = browser.requested()
        browser.open("about:blank")  # what a failed test left running ends
    hosts = {urlsplit(url).hostname for url in urls if not url.startswith("data:")}
    assert hosts <= {"127.0.0.1", "test.localhost"}
    assert not [line for line in browser.log() if "Failed to load resource" not in line]


def fresh(page: Browser, url: str) -> None:
    """Open the page as someone who was never there."""
    page.open(url)
    page.run("messages = []; localStorage.clear(); sessionStorage.clear()")
    page.open(url)
    page.until("$('model').options.length")


def say(page: Browser, text: str) -> None:
    page.type("#prompt", text + ENTER)
    page.until(f"{IDLE} || messages.length > 1")


def set_fields(page: Browser, **values: str) -> None:
    """Fill in the settings."""
    page.click("#open")
    for id, value in values.items():
        page.type(f"#{id}", value)
    page.click("#settings .primary")
