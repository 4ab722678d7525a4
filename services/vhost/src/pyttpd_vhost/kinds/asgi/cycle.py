"""One request and its response: uvicorn's RequestResponseCycle, whose answers go through our `Exchange`.

Of uvicorn are the call of the application with all that can come of it, and what it receives. What it sends is framed
where all kinds' answers are (http/exchange.py): lengths, chunks, HEAD, HTTP/1.0, hop-by-hop headers, values that would
begin a new line.

Rules:
- The head waits for the first message with a body (the specification asks for that), and shares its packet. So an
  application that fails in between gets its 500.
- send() waits while the client has yet to take more than line.HIGH bytes, and raises ClientDisconnected (an OSError)
  when it has gone. A client that has only shut down its sending side is told as gone to who receives, and gets what is
  sent all the same.
- What the application does wrong is an exception in its send(): a 500, or a cut body, and a traceback in its log.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected

from pyttpd_vhost.http.errors import ClientGone, ResponseError
from pyttpd_vhost.http.exchange import State
from pyttpd_vhost.http.response import STATUS, Fields, Trailers

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.asgi.conversation import Conversation
    from pyttpd_vhost.kinds.asgi.scopes import Scope

#: So many bytes a client may take at once; then others have their turn, however quick it is.
UNBROKEN = 1 << 20

_NOTHING = State.NOTHING
_MIN_STATUS, _MAX_STATUS = 200, 599


class Cycle(RequestResponseCycle):
    """See the module's text. `age` is how long (s) the application has kept its client waiting, since it last did
    anything for it.
    """

    def __init__(self, conversation: Conversation, scope: Scope, *, expect: bool) -> None:
        super().__init__(
            scope=scope,  # type: ignore[arg-type]  # uvicorn's scopes are TypedDicts
            transport=conversation.cycles,  # type: ignore[arg-type]  # the part of it that is used; so with the others
            flow=conversation,  # type: ignore[arg-type]
            logger=conversation.logger,  # type: ignore[arg-type]
            access_logger=conversation.logger,  # type: ignore[arg-type]
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=expect,
            keep_alive=True,
            on_response=conversation.on_response_complete,
        )
        self._conversation = conversation
        self._exchange = conversation.exchange
        self._fields: Fields | None = None
        self._status = 0
        self._trailers: list[tuple[str, str]] | None = None
        self.task: asyncio.Task[None] | None = None
        self.age = 0.0
        self._unbroken = 0  # bytes sent since others had their turn
        self.reported = False
        self.condemned = False

    async def run_asgi(self, app: Any) -> None:
        """Call the application, and see to what it leaves open."""
        await super().run_asgi(app)
        if not self.response_complete:
            self._conversation.unfinished(self)

    async def send_500_response(self) -> None:
        """The application has failed: `unfinished` answers."""

    async def send(self, message: Any) -> None:
        """Take a message from the application."""
        conversation = self._conversation
        if conversation.write_paused:
            await conversation.drain()
        kind = message["type"]
        if conversation.line.ended and not self.response_complete:
            raise ClientDisconnected
        if kind == "http.response.body":
            if self.response_complete or self._fields is None or self._trailers_due:
                raise ResponseError(f"unexpected message: {kind}")
            self._body(message.get("body", b""), more=message.get("more_body", False))
            if self._unbroken >= UNBROKEN:
                self._unbroken = 0
                await asyncio.sleep(0)
        elif kind == "http.response.start":
            if self.response_complete or self._fields is not None:
                raise ResponseError("a second response to one request")
            self._start(message)
        elif kind == "http.response.trailers":
            if self.response_complete or not self._trailers_due or self._trailers is None:
                raise ResponseError(f"unexpected message: {kind}")
            self._trailers += pairs(message.get("headers", ()))
            if not message.get("more_trailers", False):
                self._end()
        else:
            raise ResponseError(f"unexpected message: {kind!r:.100}")

    _trailers_due = False

    def _start(self, message: Any) -> None:
        status = message["status"]
        if type(status) is not int:
            status = int(status)  # http.HTTPStatus
        if not _MIN_STATUS <= status <= _MAX_STATUS:
            raise ResponseError(f"not a status: {status}")
        self._fields = Fields(pairs(message.get("headers", ())))
        self._status = status
        if message.get("trailers", False):
            self._trailers = []

    def _body(self, data: bytes, *, more: bool) -> None:
        if type(data) is not bytes:
            data = plain(data)
        exchange = self._exchange
        if exchange.full:
            self._unbroken = (
                UNBROKEN  # nobody sees the rest, and it may have no end: then request_timeout ends it
            )
        else:
            self._unbroken += len(data)
            self.age = 0.0
        try:
            if exchange.state is _NOTHING:
                assert self._fields is not None
                self.response_started = True
                self.waiting_for_100_continue = False
                status = self._status
                text = STATUS.get(status) or f"{status} "
                if not more and self._trailers is None:
                    if not data and self._fields.length is None and exchange.request.method == "HEAD":
                        # says nothing of the length that GET would have had
                        exchange.begin(text, status, self._fields)
                        exchange.end()
                    else:
                        exchange.respond(text, status, self._fields, data)
                    self._complete()
                    return
                exchange.begin(text, status, self._fields, data)
            elif data:
                exchange.write(data)
            self._conversation.line.sent()
            if not more:
                if self._trailers is None:
                    self._end()
                else:
                    self._trailers_due = True
        except ClientGone as gone:
            self._conversation.line.lose(gone)
            raise ClientDisconnected from gone

    def _end(self) -> None:
        try:
            self._exchange.end(None if self._trailers is None else Trailers(self._trailers))
        except ClientGone as gone:
            self._conversation.line.lose(gone)
            raise ClientDisconnected from gone
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        self.on_response()


def pairs(headers: Any) -> list[tuple[str, str]]:
    """Return ASGI's headers as text. Raises ResponseError."""
    try:
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    except (AttributeError, TypeError, ValueError):
        raise ResponseError("headers are pairs of bytes") from None


def plain(data: object) -> bytes:
    """Return bytes that are nothing but bytes: a subclass could lie about its length. Raises ResponseError."""
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).tobytes()
    raise ResponseError(f"a body is made of bytes, not {type(data).__name__}")
