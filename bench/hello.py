"""The smallest WSGI and ASGI applications: what the comparisons measure is the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

BODY = b"Hello, world!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "13")]


ASGI_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"13")]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with 13 bytes."""
    start_response("200 OK", HEADERS)
    return [BODY]


async def asgi_app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """The same, asynchronously; lifespan isn't for it."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": ASGI_HEADERS})
    await send({"type": "http.response.body", "body": BODY})
