"""The smallest ASGI application: what the comparisons measure is the server. suite/peers.py can make it longer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

HELLO = b"Hello, world!"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(HELLO))],
}
BODY = {"type": "http.response.body", "body": HELLO}


async def app(
    scope: dict[str, Any], _receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answer with 13 bytes, or as many as are wanted."""
    if scope["type"] == "http":
        await send(START)
        await send(BODY)
