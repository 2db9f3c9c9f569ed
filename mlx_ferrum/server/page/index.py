"""The page at `/`: a chat with the model, in one file of HTML."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

FILE = "index.html"


@dataclass(frozen=True)
class Page:
    """body: the file; tag: its ETag; policy: its Content-Security-Policy."""

    body: bytes
    tag: str
    policy: str


@cache
def load() -> Page:
    """The page, read once."""
    body = resources.files(__package__).joinpath(FILE).read_bytes()
    return Page(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"', policy(body.decode()))


def policy(html: str) -> str:
    """The Content-Security-Policy that lets a page run its own script and style, and ask its own server, only."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {source(html, 'script')}",
            f"style-src {source(html, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",  # no text becomes HTML
            "trusted-types 'none'",
        ]
    )


def source(html: str, tag: str) -> str:
    """The hash of the page's only element of that tag, as a policy has it."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def page(request: Request) -> Response:
    """`/`."""
    found = load()
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": found.policy,
        "etag": found.tag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    given = request.headers.get("if-none-match", "").split(",")
    if {tag.strip().removeprefix("W/") for tag in given} & {found.tag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type="text/html; charset=utf-8")
