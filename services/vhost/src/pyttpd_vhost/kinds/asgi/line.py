"""One client's connection while the event loop has it: what uvicorn's protocol classes know as their transport.

Theory of operation. A line has the socket's events; what they mean is its protocol's affair, a `Conversation`
(conversation.py), or a `WebSocket` (websocket.py) that has taken a conversation's place. What can't be sent at once
lies in the stream; above HIGH bytes the protocol is told to pause, below LOW to go on. So an application that waits for
its send() holds no more than that, whatever its client does.

Rules:
- Reading stops while the protocol has paused it, while it is held (something has come that isn't due yet), and while a
  client that doesn't take what it gets has more than HIGH bytes coming: its pings are answered, too.
- How long a client may take to read is the vhost's patience (http/patience.py), looked at every LOOK.
- Who has sent anything says so (`sent`); what the socket hasn't taken is finished then.
- A line ends once: given back (`give_back`), or lost (`lose`). Then it touches the socket no more, and has no talk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.kinds.asgi.stream import LoopStream

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.asgi.eventloop import EventLoop
    from pyttpd_vhost.parking import Parked

#: Bytes pending above which an application's send() waits, and below which it goes on (asyncio's own marks).
HIGH, LOW = 65536, 16384
#: asyncio.Transport makes a dictionary for each unless it gets one.
_NO_EXTRA: dict[str, Any] = {}


class Talk(Protocol):
    """What a line's protocol does beyond asyncio's interface."""

    def readable(self) -> None: ...
    def drained(self) -> None: ...
    def closing(self) -> None: ...
    def sweep(self, seconds: float) -> None: ...
    def leave(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...


class Line(asyncio.Transport):
    """See the module's text. `one` is what the worker knows the connection as. Who makes it gives it its `talk`."""

    __slots__ = (
        "_fd",
        "_held",
        "_loop",
        "_paused",
        "_reading",
        "_server",
        "_write_paused",
        "_writing",
        "connection",
        "counts",
        "ended",
        "exchange",
        "one",
        "owner",
        "sock",
        "stream",
        "talk",
    )
    talk: Talk

    def __init__(self, owner: EventLoop, one: Parked) -> None:
        super().__init__(_NO_EXTRA)
        self.owner = owner
        self.one = one
        self.connection = one.connection
        self.sock = one.connection.sock
        self.stream = LoopStream(self.sock, owner.site)
        self.exchange = self.connection.lend(self.stream, owner.site)
        self.ended = False
        #: What `write` sends is a part of the answer.
        self.counts = False
        self._server: tuple[str, int | None] | None = None
        self._loop = owner.loop
        self._fd = one.fd
        self._reading = False
        self._paused = False
        self._held = False
        self._write_paused = False
        self._writing = False

    @property
    def server(self) -> tuple[str, int | None]:
        """Our end's address and port."""
        if self._server is None:
            try:
                name = self.sock.getsockname()
            except OSError:
                name = ()
            self._server = (str(name[0]), int(name[1])) if len(name) > 1 else ("", None)
        return self._server

    # What uvicorn's classes use

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio.BaseTransport. The client is the request's, also behind a trusted proxy."""
        match name:
            case "peername":
                address, port = self.exchange.client
                return address, int(port)
            case "sockname":
                return self.server
            case "sslcontext":
                origin = self.exchange.origin
                return origin is not None and origin.scheme == "https"
            case _:
                return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` as it is: no part of an answer that the exchange frames."""
        if self.ended or not data:
            return
        try:
            self.stream.send_whole(bytes(data))
        except ClientGone as gone:
            self.lose(gone)
            return
        if not self.counts:
            self.stream.sent -= len(data)
        self.sent()

    def close(self) -> None:
        """End the connection when what is pending is sent."""
        if not self.ended:
            self.talk.closing()

    def abort(self) -> None:
        """End the connection at once."""
        self.lose(ClientGone("given up"))

    def is_closing(self) -> bool:
        return self.ended

    def get_write_buffer_size(self) -> int:
        return self.stream.size

    def pause_reading(self) -> None:
        self._paused = True
        self._watch()

    def resume_reading(self) -> None:
        self._paused = False
        self._watch()

    def is_reading(self) -> bool:
        return self._reading

    # Reading

    def open(self) -> None:
        """Begin to read."""
        self._watch()

    def hold(self, *, held: bool) -> None:
        """Don't read for a while, whatever the protocol says."""
        if self._held != held:
            self._held = held
            self._watch()

    def _watch(self) -> None:
        wanted = not (self._paused or self._held or self._write_paused or self.ended)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        self.talk.readable()

    # Writing

    def sent(self) -> None:
        """Something was sent: see to what the socket hasn't taken, and whether it is too much for now."""
        if not self.stream.pending:
            return
        if not self._writing:
            self._writing = True
            self.stream.watch()
            self._loop.add_writer(self._fd, self._writable)
        if not self._write_paused and self.stream.size > HIGH:
            self._write_paused = True
            self._watch()
            self.talk.pause_writing()

    def _writable(self) -> None:
        try:
            done = self.stream.flush()
        except ClientGone as gone:
            self.lose(gone)
            return
        if done:
            self._writing = False
            self._loop.remove_writer(self._fd)
            self.stream.begin()
        if self._write_paused and (done or self.stream.size <= LOW):
            self._write_paused = False
            self._watch()
            self.talk.resume_writing()
        if done:
            self.talk.drained()

    # Time

    def sweep(self, seconds: float) -> None:
        """So long (s) has passed since the last time."""
        if self.stream.pending:
            try:
                self.stream.look()
            except ClientGone as gone:
                self.lose(gone)
                return
        self.talk.sweep(seconds)

    # The end

    def give_back(self, *, idle: bool, announced: bool = False) -> None:
        """Give the connection back to the worker's threads; see `Connection.come_back`."""
        if self._leave():
            self.owner.give_back(self, self.connection.come_back(idle=idle, announced=announced))
            del self.talk  # which refers to us

    def lose(self, gone: ClientGone) -> None:
        """The client has gone, or has to go."""
        if self._leave():
            self.owner.give_back(self, self.connection.lost(gone))
            self.talk.connection_lost(gone)
            del self.talk

    def _leave(self) -> bool:
        if self.ended:
            return False
        self.ended = True
        self._watch()
        if self._writing:
            self._loop.remove_writer(self._fd)
        return True
