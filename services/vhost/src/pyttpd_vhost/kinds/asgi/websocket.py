"""WebSockets: uvicorn's protocol class (on the library websockets), with our limits and our books.

Of uvicorn and websockets are the handshake, frames, messages, pings, compression and the closing. Ours are the scope
(scopes.py), what an application may put into a response's head, how long things may last, and what is counted.

    asked for ── the application accepts ──> open ── closed by either side, or by us ──> the connection's end
        └── it refuses: 403, or what it answers; it says nothing for request_timeout: 500

Rules:
- The head was read and checked before, and is given to websockets anew; Origin is the application's business, as in
  every ASGI server: only it knows who may speak to it.
- When the worker retires, open ones get 1012 (service restart, RFC 6455's registry), at once: their clients come back,
  and to another worker.
- A client that says nothing is found by ping (`websocket_ping`); one that takes nothing by write_timeout and
  min_read_rate, like every other one.
- In the access log it is one entry, when it has ended.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from pyttpd_vhost.http.errors import ClientGone, ResponseError
from pyttpd_vhost.http.response import DROPPED, Fields
from pyttpd_vhost.http.stream import BODY_READ
from pyttpd_vhost.kinds.asgi.complaints import Complaints
from pyttpd_vhost.kinds.asgi.cycle import pairs

if TYPE_CHECKING:
    from pyttpd_vhost.http.engine import Request
    from pyttpd_vhost.kinds.asgi.eventloop import Application
    from pyttpd_vhost.kinds.asgi.line import Line
    from pyttpd_vhost.kinds.asgi.scopes import Scope

#: What is said to one on which nothing was said for too long: a normal closure.
IDLE = 1000
#: What of the scope is ours, and not what uvicorn makes of the head that it gets.
_OURS = ("path", "raw_path", "query_string", "root_path", "headers", "client", "server")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def asked_for(request: Request) -> bool:
    """Whether `request` asks for a WebSocket (RFC 6455 section 4.1); whether rightly is websockets' to say."""
    for name, _ in request.fields:
        if len(name) == 7 and name.lower() == b"upgrade":
            break
    else:
        return False  # nearly always, so it has to be quick
    if request.method != "GET" or request.version != 11:
        return False
    if (request.get(b"upgrade") or b"").strip().lower() != b"websocket":
        return False
    options = (request.get(b"connection") or b"").lower().split(b",")
    return any(option.strip() == b"upgrade" for option in options)


class WebSocket(WebSocketsSansIOProtocol):
    """See the module's text."""

    def __init__(self, line: Line, app: Application, scope: Scope) -> None:
        super().__init__(
            config=app.config, server_state=app.state, app_state=app.lifespan_state, _loop=line.owner.loop
        )
        self.line = line
        self.logger = Complaints(line)  # type: ignore[assignment]  # the part of it that is used
        self.conn.logger = self.logger
        self._app = app
        self.app = app.call
        self.root_path = ""  # it is in the path that was sent
        self._scope = scope
        self._task: asyncio.Task[None] | None = None
        self._status = 500
        self._waited = 0.0
        self._still = 0.0
        self._closing = False
        self._seen = 0

    def begin(self) -> None:
        """Give websockets the head. What comes behind it waits until the application has accepted."""
        line, scope = self.line, self._scope
        line.exchange.keep = False
        self.connection_made(line)
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        head = b"".join([b"%b: %b\r\n" % field for field in scope["headers"]])
        line.hold(held=True)
        self._feed(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, head))

    def _open(self) -> None:
        """The application has accepted: begin with what has come meanwhile."""
        line = self.line
        ahead, line.stream.ahead = line.stream.ahead, b""
        if ahead:
            self._feed(ahead)
        if not self._closing:
            line.hold(held=False)

    # From the line

    def readable(self) -> None:
        """Something has come, or the end has."""
        try:
            data = self.line.stream.receive(BODY_READ)
        except BlockingIOError:
            return
        except ClientGone as gone:
            self.line.lose(gone)
            return
        if data:
            self._feed(data)
        else:
            self.line.lose(ClientGone("closed without a closing handshake"))

    def _feed(self, data: bytes) -> None:
        try:
            self.data_received(data)
        except Exception as error:  # noqa: BLE001 - of uvicorn's or websockets', about what a client has sent
            self.line.owner.site.log.info(
                "websocket refused",
                client=self.line.exchange.client[0],
                reason=f"{type(error).__name__}: {error}",
            )
            self._status = 400
            self.line.lose(ClientGone("a malformed handshake or frame"))

    def drained(self) -> None:
        """All that was pending is sent."""
        if self._closing:
            self._end()

    def closing(self) -> None:
        """Uvicorn is done with it."""
        if not self._closing:
            self._closing = True
            self.line.hold(held=True)
            if not self.line.stream.pending:
                self.loop.call_soon(self._end)

    def _end(self) -> None:
        line = self.line
        if not line.ended:
            line.exchange.code = self._status
            line.connection.answered()
            line.give_back(idle=False)
            self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn's; the client has gone, or the socket was closed."""
        if exc is not None:
            self.line.exchange.code = self._status
        if self in self.connections:
            super().connection_lost(exc)

    def leave(self) -> None:
        """The worker retires: uvicorn's shutdown says 1012."""
        try:
            self.shutdown()
        except InvalidState:
            self.line.close()  # its client is just closing it

    def _say_close(self, code: int) -> None:
        try:
            self.conn.send_close(code)
        except InvalidState:
            return
        self.line.write(b"".join(self.conn.data_to_send()))

    # From uvicorn

    def handle_connect(self, event: Any) -> None:
        """Accept or refuse the handshake; the application's task begins in it."""
        super().handle_connect(event)
        if self.response.status_code != 101:
            self._status = self.response.status_code
            return
        scope: Any = self.scope
        scope.update({key: self._scope[key] for key in _OURS})

    async def run_asgi(self) -> None:
        """Call the application, and see to what it leaves open."""
        self._task = asyncio.current_task()
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        """Take a message from the application; what becomes a response's head is checked."""
        kind = message["type"]
        self._still = 0.0
        if kind == "websocket.accept":
            subprotocol = message.get("subprotocol")
            if subprotocol and _TOKEN.fullmatch(subprotocol) is None:
                raise ResponseError(f"not a subprotocol: {subprotocol!r:.100}")
            message = {**message, "headers": _checked(message.get("headers", ()))}
            self._status = 101
        elif kind == "websocket.http.response.start":
            status = int(message["status"])
            if not 200 <= status <= 599:
                raise ResponseError(f"not a status: {status}")
            message = {**message, "status": status, "headers": _checked(message.get("headers", ()))}
            self._status = status
        elif kind == "websocket.http.response.body":
            message = {**message, "body": message.get("body", b"")}
        elif kind == "websocket.close" and not self.handshake_complete:
            self._status = 403
        await super().send(message)
        if kind == "websocket.accept" and not self.line.ended:
            self._open()

    async def receive(self) -> Any:
        """Wait for a message to the application."""
        message = await super().receive()
        self._still = 0.0
        return message

    # Time

    def sweep(self, seconds: float) -> None:
        """See `Line.sweep`."""
        pool, options = self.line.owner.site.share.pool, self._app.options
        if not self.handshake_complete:
            self._waited += seconds
            if pool.request_timeout and self._waited >= pool.request_timeout:
                self.line.owner.condemned(self.line.exchange.request, self._task, self._waited)
                self._cancel()
                self.leave()
            return
        self._still += seconds
        if options.websocket_idle and self._still >= options.websocket_idle and not self.close_sent:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": IDLE, "reason": ""})
            self._say_close(IDLE)
            self.line.close()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _checked(headers: Any) -> list[tuple[bytes, bytes]]:
    """Return an application's headers without those that aren't its to say. Raises ResponseError."""
    text = pairs(headers)
    Fields([pair for pair in text if pair[0].lower() != "content-length"])
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in text
        if name.lower() not in DROPPED and name.lower() != "content-length"
    ]
