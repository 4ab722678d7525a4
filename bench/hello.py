"""The smallest WSGI application: what the comparisons measure is the server. suite/peers.py can make it longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

BODY = b"Hello, world!"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with 13 bytes, or as many as are wanted."""
    start_response("200 OK", HEADERS)
    return [BODY]
