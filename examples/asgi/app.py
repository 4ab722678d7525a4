"""An ASGI application (ASGI 3) of the standard library alone: a form, an upload, a streamed answer, a WebSocket chat.

Works under any ASGI server: `application` is the callable. The chat is one room per worker process; what is said in it
is kept nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_FORM = 64 * 1024
MAX_SAID = 500  # characters of one line of the chat
MAX_WAITING = 100  # lines that a slow reader may be behind; then it is shown out
STREAM_LINES = 10
STREAM_PAUSE = 0.3  # s

STYLE = (
    "body{font:1.05rem/1.6 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:2rem 1rem}"
    "pre,output{background:#8882;padding:.5rem;display:block;overflow-x:auto}label{display:block;margin:.5rem 0}"
)

#: Everybody in the chat, with what is still to be said to him.
room: set[asyncio.Queue[str | None]] = set()
#: How often the server has called us at its start, as it should once.
started = 0


def page(title: str, body: str) -> bytes:
    """Return a page. `title` is text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode()


async def answer(send: Send, body: bytes, status: int = 200, kind: str = "text/html; charset=utf-8") -> None:
    """Send a whole answer."""
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


# ---- pages -------------------------------------------------------------------------------------------------


async def index(_scope: Message, _receive: Receive, send: Send) -> None:
    """The front page."""
    body = (
        "<p>This tenant is of the kind <strong>asgi</strong>: coroutines in a worker that can reach no network.</p>"
        '<ul><li><a href="form">A form</a></li><li><a href="upload">An upload</a></li>'
        f'<li><a href="stream">A streamed answer</a>: {STREAM_LINES} lines, one every {STREAM_PAUSE} s</li>'
        '<li><a href="chat">A chat</a>, by WebSocket: open it in two windows</li>'
        '<li><a href="scope">What the application knows about your request</a></li></ul>'
    )
    await answer(send, page("An ASGI application", body))


async def form(scope: Message, receive: Receive, send: Send) -> None:
    """Ask for a name and a message by GET or POST, and repeat them."""
    text = scope["query_string"]
    if scope["method"] == "POST":
        text = b""
        async for piece in pieces(receive):
            text += piece
            if len(text) > MAX_FORM:
                await answer(send, page("Too large", f"<p>At most {MAX_FORM} bytes.</p>"), 413)
                return
    fields = parse_qs(text.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100)
    said = ""
    if fields:
        name, message = (escape(fields.get(key, [""])[0]) for key in ("name", "message"))
        said = f"<p>{escape(scope['method'])} said:</p><output>{name}: {message}</output>"
    inputs = (
        '<label>Name <input name="name"></label><label>Message <textarea name="message"></textarea></label>'
    )
    body = (
        f'{said}<form method="post" accept-charset="utf-8">{inputs}<button>Send by POST</button> '
        '<button formmethod="get">Send by GET</button></form><p><a href=".">Back</a></p>'
    )
    await answer(send, page("A form", body))


async def upload(scope: Message, receive: Receive, send: Send) -> None:
    """Take a file as the browser's script sends it (PUT), and show its size and SHA-256."""
    if scope["method"] == "PUT":
        size, digest = 0, hashlib.sha256()
        async for piece in pieces(receive):
            size += len(piece)
            digest.update(piece)
        await answer(send, f"size: {size}\nsha256: {digest.hexdigest()}\n".encode(), kind="text/plain")
        return
    body = (
        '<label>A file <input type="file" id="file"></label><output id="said"></output>'
        "<script>file.onchange = async () => {"
        "said.textContent = 'on its way ...';"
        "const answer = await fetch('upload', {method: 'PUT', body: file.files[0]});"
        'said.textContent = await answer.text()}</script><p><a href=".">Back</a></p>'
    )
    await answer(send, page("An upload", body))


async def stream(_scope: Message, _receive: Receive, send: Send) -> None:
    """Numbered lines, each sent when it is made."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(1, STREAM_LINES + 1):
        if number > 1:
            await asyncio.sleep(STREAM_PAUSE)
        line = b"line %d of %d\n" % (number, STREAM_LINES)
        await send({"type": "http.response.body", "body": line, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def show_scope(scope: Message, _receive: Receive, send: Send) -> None:
    """What the server says about the request: the client's real address among it."""
    shown = ("type", "asgi", "http_version", "method", "scheme", "root_path", "path", "client", "server")
    text = json.dumps({key: scope.get(key) for key in shown} | {"started": started}, indent=2, default=str)
    await answer(send, text.encode() + b"\n", kind="application/json")


async def chat(_scope: Message, _receive: Receive, send: Send) -> None:
    """The chat's page."""
    body = (
        '<output id="said"></output><form id="say"><input id="line" maxlength="500" autofocus autocomplete="off"> '
        "<button>Say</button></form>"
        "<script>const socket = new WebSocket(location.href.replace(/^http/, 'ws').replace(/chat$/, 'room'));"
        "const tell = text => { said.append(text, document.createElement('br')) };"
        "socket.onmessage = event => tell(event.data);"
        "socket.onclose = event => tell(`closed (${event.code})`);"
        "say.onsubmit = event => { event.preventDefault(); socket.send(line.value); line.value = '' }"
        '</script><p><a href=".">Back</a></p>'
    )
    await answer(send, page("A chat", body))


async def pieces(receive: Receive) -> Any:
    """Yield the body as it comes. Ends early if the client does."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


PAGES: dict[str, tuple[Callable[[Message, Receive, Send], Awaitable[None]], tuple[str, ...]]] = {
    "/": (index, ("GET", "HEAD")),
    "/form": (form, ("GET", "HEAD", "POST")),
    "/upload": (upload, ("GET", "HEAD", "PUT")),
    "/stream": (stream, ("GET", "HEAD")),
    "/chat": (chat, ("GET", "HEAD")),
    "/scope": (show_scope, ("GET", "HEAD")),
}


# ---- the chat ----------------------------------------------------------------------------------------------


async def enter(receive: Receive, send: Send) -> None:
    """Be one of the room's until either side ends that."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    mine: asyncio.Queue[str | None] = asyncio.Queue()
    room.add(mine)
    tell_all(f"somebody came; {len(room)} here")
    telling = asyncio.ensure_future(tell(mine, send))
    try:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                break
            if text := message.get("text"):
                tell_all(text[:MAX_SAID])
    finally:
        room.discard(mine)
        telling.cancel()
        tell_all(f"somebody left; {len(room)} here")


async def tell(mine: asyncio.Queue[str | None], send: Send) -> None:
    """Send what is said, one after the other."""
    while (text := await mine.get()) is not None:
        await send({"type": "websocket.send", "text": text})
    await send({"type": "websocket.close", "code": 1008, "reason": "too slow"})


def tell_all(text: str) -> None:
    for each in tuple(room):
        if each.qsize() < MAX_WAITING:
            each.put_nowait(text)
        else:
            room.discard(each)
            each.put_nowait(None)


# ---- the application ---------------------------------------------------------------------------------------


async def lifespan(receive: Receive, send: Send) -> None:
    """Say that we are ready, and that we are done."""
    global started
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            started += 1
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI callable."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
    if scope["type"] == "websocket":
        if path == "/room":
            await enter(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before it is accepted: 403
        return
    found, methods = PAGES.get(path, (None, ()))
    if found is None:
        await answer(send, page("Not found", '<p><a href="/">Back</a></p>'), 404)
    elif scope["method"] not in methods:
        headers = [(b"allow", ", ".join(methods).encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 405, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await found(scope, receive, send)
