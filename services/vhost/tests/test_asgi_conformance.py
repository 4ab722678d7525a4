"""The conformance suite (tests/conformance/cases.py) through an ASGI application: the same answers as from every kind.

The application echoes as the suite's kind does (echo.py), by ASGI's means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyttpd.config.shares import HttpSettings

from conformance.cases import BODY_LIMIT, CLOSED, HEAD_LIMIT, PROBE, SECTIONS, Case, answer, ok

from .beside import BesideServer, serve_asgi
from .conftest import Client
from .test_conformance import ROWS, check, random_pieces, whole

PLAIN = (b"content-type", b"text/plain")


async def read(receive: Callable[..., Any]) -> bytes:
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError("the client is gone, or its body is no good")
        content += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(content)


def pairs(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b=%b;" % pair for pair in fields)


async def echo(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """See echo.py."""
    if scope["type"] == "lifespan":
        raise RuntimeError("not for me")

    async def respond(content: bytes, code: int = 200, length: int | None = None) -> None:
        headers = [PLAIN] if length is None else [PLAIN, (b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def pieces(what: str) -> None:
        code = int(what) if what.isdigit() else 200
        headers = [PLAIN, (b"content-length", b"5")] if what in ("long", "short") else [PLAIN]
        await send({"type": "http.response.start", "status": code, "headers": headers, "trailers": True})
        for piece in {"long": (b"123", b"4567"), "short": (b"12", b"3")}.get(what, (b"pie", b"ces")):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        await send({"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")]})

    query = scope["query_string"]
    said = scope["method"].encode() + b" " + scope["raw_path"] + (b"?" + query if query else b"")
    first, _, last = scope["raw_path"].decode("ascii")[1:].partition("/")
    match first:
        case "body":
            await respond(said + b" " + await read(receive))
        case "swallow":
            try:
                said += b" " + await read(receive)
            except ConnectionError:
                pass
            await (pieces(last) if last else respond(said))
        case "fields":
            await respond(pairs(scope["headers"]))
        case "trailers":
            await read(receive)
            await respond(b"")
        case "long":
            await respond(b"1234567", length=5)
        case "short":
            await respond(b"123", length=5)
        case "out":
            await pieces(last)
        case _:
            await respond(said, int(first) if first.isdigit() else 200)


#: Where ASGI has another answer: the row, what is answered, and why.
DIFFERENT = {
    "values are trimmed": (ok(b"host=a.test;a=b c;"), "names are in lower case, by the specification"),
    "names stay as sent": (
        ok(b"host=a.test;"),
        "and none has an underscore: frameworks make variables of them",
    ),
    "several of a name": (ok(b"host=a.test;a=b;a=c;"), "in lower case"),
    "the kind gets them": (ok(b""), "ASGI has no place for a request's trailers"),
    "websocket": (answer(400), "not ignored: it asks for a WebSocket, and has no key"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[BesideServer]:
    settings = HttpSettings(body_limit=BODY_LIMIT, head_limit=HEAD_LIMIT, idle_timeout=5.0)
    server = serve_asgi(echo, share={"http": settings})
    with server.connect() as sock:
        sock.sendall(PROBE)
        assert Client(sock).answer().status == 200
    server.wait_closed()
    yield server
    server.stop()


@pytest.mark.parametrize(("title", "case"), ROWS, ids=[f"{title}: {case.name}" for title, case in ROWS])
def test_row(server: BesideServer, title: str, case: Case) -> None:
    if case.name in DIFFERENT:
        case = replace(
            case, answers=(DIFFERENT[case.name][0],), end=CLOSED if case.name == "websocket" else case.end
        )
    for cut in (whole, random_pieces):
        if cut is whole or not case.together:
            try:
                check(server, case, cut(case))
            except AssertionError as fault:
                fault.add_note(cut.__name__)
                raise


def test_the_differences_are_rows() -> None:
    assert set(DIFFERENT) <= {case.name for cases in SECTIONS.values() for case in cases}
