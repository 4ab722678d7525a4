"""One client's connection in a worker, from its take to its close.

Theory of operation. The worker's loop owns the waiting, this module the states. A turn (`on_readable`,
`on_writable`, `on_timeout`) does what can be done without waiting, except while a kind reads or writes in the
middle of a body, and returns what to wait for next; `deadline` says until when. What happens in which state
is in the three `match` statements; the transitions:

    (new) --> HEAD       until a head is complete
    (new) --> SURPLUS    its client has too many connections: 429 as soon as it says anything
    HEAD --> BODY        a short body isn't whole; the kind is asked when it is
    HEAD --> SENDING     an answer is more than the socket takes, and epoll finishes it; or the client has
                         pipelined more than its share of a turn
    HEAD --> IDLE        everything that was read is answered
    BODY, SENDING --> HEAD, IDLE
    IDLE --> HEAD        the first byte of a further request
    HEAD --> IDLE        nothing is there at the first turn: a sibling has passed it on, between two requests
    HEAD --> CLOSED      its kind has given the connection to another process (kinds/handoff): without a shutdown
    HEAD, IDLE --> AWAY  its kind serves it beside the worker's threads (aside.py): this request and those behind it
    AWAY --> IDLE, SENDING    it has come back: to be parked, or with what comes next read ahead, or to be ended
    any --> LINGER       nothing follows: our side is shut down, what still comes is read and dropped
    any --> CLOSED

How long each state may last, counted from what; what happens then (times as `Site.patience` has them now, so stress
shortens what has begun before):

    HEAD, SURPLUS   head_timeout from the head's first byte (or the take)    408
    BODY            a look every LOOK: nothing came for read_timeout,        408
                    or less than min_body_rate
    IDLE            idle_timeout from the last answer                        closed without a word
    SENDING         a look every LOOK: nothing taken for write_timeout,      given up
                    or less than min_read_rate
    LINGER          LINGER_TIMEOUT from the client's last byte, LINGER_TOTAL in all
    in a kind       the same limits for writing; for reading a body read_timeout and min_body_rate: 408
    AWAY            the same, seen to by who has it

So a slow head, a short body, an idle connection, and the tail of a response cost a descriptor and what they have sent,
or have yet to take; only a body longer than body_buffer, or a reader in the middle of a response, can cost a thread.

Rules:
- The head scanner's verdict comes before the engine's, the engine's before the kind's.
- The first request and each later one must be for a name of this vhost, else 421 and the end: a connection
  that a tenant has held is never handed to another one.
- After a refusal nothing of the connection is served: what follows may have been meant as a part of what was
  refused.
- shutdown() before close(), always: a duplicate may exist in another process, and then close() alone sends no
  FIN. Here is the shutdown(); CLOSED tells the worker to take the socket out of its epoll and to close it, in
  that order, because with a duplicate close() alone leaves it registered (epoll(7)).
- No close with bytes unread: the kernel would reset the connection, and the reset can overtake the answer
  (RFC 9112 section 9.6).
"""

from __future__ import annotations

import enum
import socket
import traceback
from time import monotonic
from typing import TYPE_CHECKING

from pyttpd import tcp
from pyttpd.head import Refused
from pyttpd.wire.messages import Client

from pyttpd_vhost.access import CLIENT_GONE, HANDED_OVER
from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import CHUNKED, Request
from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.exchange import State as Response
from pyttpd_vhost.http.patience import LOOK, Pace
from pyttpd_vhost.http.response import CLOSE, STATUS, date_line
from pyttpd_vhost.http.stream import BODY_READ, HEAD_READ, Stream

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

#: Requests served in one turn, so that one pipelining client doesn't hold the worker.
PIPELINE_BURST = 16

#: How long a client may take to close after our FIN, from the last byte it sent, and in all.
LINGER_TIMEOUT = 2.0
LINGER_TOTAL = 30.0

#: recv(2) calls per turn while lingering.
LINGER_BURST = 16


class Want(enum.Enum):
    """What a connection waits for."""

    READ = enum.auto()
    WRITE = enum.auto()
    CLOSED = enum.auto()
    AWAY = enum.auto()  # nothing here: somebody else waits for it


class State(enum.Enum):
    """What a connection is doing between two turns."""

    HEAD = enum.auto()
    BODY = enum.auto()
    IDLE = enum.auto()
    SENDING = enum.auto()
    SURPLUS = enum.auto()
    AWAY = enum.auto()
    LINGER = enum.auto()
    CLOSED = enum.auto()


_HEAD, _BODY, _IDLE, _SENDING, _SURPLUS, _AWAY, _LINGER, _CLOSED = State
_READ, _WRITE, _OVER = Want.READ, Want.WRITE, Want.CLOSED
_RESPONDED = Response.DONE
_PARTED = Response.PARTED
_GIVEN = Response.GIVEN


class Connection:
    """A client's connection, on `sock` (non-blocking), which its maker closes once a turn has said CLOSED.

    `client` is its address and port, `authority` the name by which the connection was routed here.
    """

    __slots__ = (
        "_announced",
        "_authority",
        "_exchange",
        "_last",
        "_left",
        "_linger_end",
        "_network",
        "_owed",
        "_pace",
        "_proxy",
        "_served",
        "_since",
        "_site",
        "_state",
        "_stream",
        "_waiting_since",
        "sock",
    )

    def __init__(self, sock: socket.SocketType, client: tuple[str, int], authority: str, site: Site) -> None:
        self.sock = sock
        self._stream = Stream(sock, site)
        self._exchange = Exchange(self._stream, site, (client[0], str(client[1])))
        self._site = site
        #: Address and port of a trusted proxy whose connection it is. Such a one is many clients'.
        self._proxy: tuple[str, str] | None = None
        if site.proxies is not None and site.proxies.trusts(client[0]):
            self._proxy = self._exchange.client
        self._authority = authority
        self._state = _HEAD
        self._served = 0
        self._last = False  # serve no further request
        self._announced = False  # the client closes too, and has nothing more to say
        self._linger_end = 0.0
        self._owed = False  # the access log's entry of an answer that isn't sent yet
        self._since = 0.0  # when that answer's request had come, if the access log wants to know
        self._left = 0  # of a short body
        self._pace: Pace | None = None  # its
        self._waiting_since = monotonic()
        self._network: bytes | None = None  # where `site.clients` counts us
        if site.clients is not None and not self.count():
            self._state = _SURPLUS

    @property
    def deadline(self) -> float:
        """CLOCK_MONOTONIC, s: when `on_timeout` must be called, as things stand; a turn moves it, and stress."""
        state, patience = self._state, self._site.patience
        if state is _IDLE:
            return self._waiting_since + patience.idle
        if state is _SENDING or state is _BODY:
            return self._waiting_since + LOOK
        return self._waiting_since + (LINGER_TIMEOUT if state is _LINGER else patience.head)

    @property
    def idle(self) -> bool:
        """Between two requests, nothing read ahead: may be parked, handed on unread (`detach`), or closed."""
        return self._state is _IDLE

    @property
    def held(self) -> int:
        """Bytes of memory that the client has taken up with what it has sent of a request that isn't whole."""
        return len(self._stream.ahead)

    @property
    def state(self) -> State:
        """What the connection is doing, for logs and tests."""
        return self._state

    # What the worker's threads need

    @property
    def request(self) -> Request | None:
        """The request that is being served, or whose answer isn't all sent yet."""
        return self._exchange.current

    @property
    def served(self) -> int:
        """How many requests were begun: while this doesn't change, it is the same one."""
        return self._served

    @property
    def unanswered(self) -> bool:
        """Nothing of an answer to `request` is sent, or about to be."""
        return self._exchange.state is Response.NOTHING

    @property
    def unread(self) -> bool:
        """Nothing of what its client is waiting for has been read: another process can serve it as well."""
        return self._state is _IDLE or (self._state is _HEAD and not self._served and not self._stream.ahead)

    @property
    def quiet(self) -> bool:
        """Between two requests, and nothing of another one has come."""
        if self._state is not _IDLE:
            return False
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def waited(self, now: float) -> float:
        """How long (s) its client has been waited for in the middle of a body, all in all."""
        stream = self._stream
        since = stream.waiting  # read once: the thread that serves it goes on meanwhile
        return stream.waited + (now - since if since else 0.0)

    def move(self, site: Site) -> None:
        """Go on with another thread's site."""
        self._site = site
        self._exchange.site = site

    # What the worker's loop calls

    def on_readable(self) -> Want:
        """Read, and serve what is complete."""
        state = self._state
        if state is _IDLE or state is _HEAD:
            stream = self._stream
            try:
                data = self.sock.recv(HEAD_READ)
            except BlockingIOError:
                if state is _HEAD and not self._served and not stream.ahead:
                    # A listener hands on whole heads. So it is a sibling's that was idle there, and it is idle here.
                    self._state = _IDLE
                    self._waiting_since = monotonic()
                    return _READ
                return self.abort() if self._last and state is _IDLE else _READ
            except OSError:
                return self.abort()
            if not data:
                return self.abort()  # closed between two requests, or in a head that nobody will complete
            if stream.ahead:
                # Without a LF no head can have been completed: a client that sends byte by byte isn't scanned
                # byte by byte
                complete = b"\n" in data or len(stream.ahead) + len(data) >= self._site.settings.head_limit
                stream.ahead += data
                if not complete:
                    return _READ
            else:
                stream.ahead = data
            return self._serve()
        if state is _LINGER:
            return self._linger()
        return self.on_writable()  # while we send, the client's end comes as an event, too

    def on_writable(self) -> Want:
        """Send more of what is pending; once it is sent, serve what was read ahead."""
        match self._state:
            case State.SENDING:
                sent = self._stream.sent
                try:
                    done = self._stream.flush()
                except ClientGone as gone:
                    return self._gone(gone)
                finally:
                    self._site.stats.bytes_sent += self._stream.sent - sent
                if not done:
                    return self._look()
                self._stream.begin()
                self._note()
                if not self._exchange.keep:
                    return self._end()
                self._state = _IDLE
                return self._serve()
            case State.BODY:
                return self._receive_body()
            case State.SURPLUS:
                return self._refuse(429, "too many connections of one client")
            case State.HEAD | State.IDLE | State.LINGER:
                return _READ
            case State.AWAY:
                return Want.AWAY
            case State.CLOSED:
                return _OVER

    def on_timeout(self) -> Want:
        """The deadline has passed. What has come while nobody looked (a busy thread) counts."""
        match self._state:
            case State.HEAD:
                since = self._waiting_since
                want = self.on_readable()
                if self._state is _HEAD and self._waiting_since == since:
                    return self._refuse(408, "no complete head within head_timeout")
                return want
            case State.SURPLUS:
                return self._refuse(408, "no complete head within head_timeout")
            case State.BODY:
                return self._receive_body()
            case State.SENDING:
                return self._look()
            case State.IDLE:
                return self.close()
            case State.AWAY:
                return Want.AWAY
            case State.LINGER | State.CLOSED:
                return self.abort()

    def close(self) -> Want:
        """End the connection as soon as nothing is lost by it; go on with what this returns.

        An idle one is CLOSED at once, unless a request has just come: that is served first, with `Connection:
        close`.
        """
        self._last = True
        match self._state:
            case State.IDLE:
                return self.on_readable()
            case State.HEAD | State.SURPLUS:
                return self._end()
            case State.CLOSED:
                return _OVER
            case State.SENDING:
                self._exchange.keep = False
                return _WRITE
            case State.BODY | State.LINGER:
                return _READ
            case State.AWAY:
                return Want.AWAY

    def abort(self) -> Want:
        """End the connection at once, whatever is lost by it.

        Who owns the waiting takes `sock` out of epoll and closes it: while the listener still has its copy, close()
        alone would leave it registered (epoll(7), Q6).
        """
        if self._state is not _CLOSED:
            if self._site.access is not None:
                if (self._state is _HEAD or self._state is _BODY) and self._stream.ahead:
                    self._note_refused(CLIENT_GONE)  # in the middle of a head, or a short body
                self._note()
            self._stream.forget()
            self._shut()
        return _OVER

    def _shut(self) -> Want:
        """All is said: it needs nothing but to be closed."""
        self._state = _CLOSED
        if self._network is not None:
            self.uncount()
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # ENOTCONN: the client was faster
        return _OVER

    def detach(self) -> socket.SocketType:
        """Give up the socket: it was handed on, or its owner wants it back. The caller owns it."""
        self._state = _CLOSED
        self.uncount()
        self._stream.forget()
        return self.sock

    def count(self) -> bool:
        """Count us for our client, where a vhost limits that; False: it has too many."""
        clients = self._site.clients
        if clients is None or self._proxy is not None:
            return True  # a proxy is many clients
        network = Client(self._exchange.client[0], 0).network
        if not clients.enter(network):
            return False
        self._network = network
        return True

    def uncount(self) -> None:
        """Don't count us any more: we are closed, or offered to a sibling, which counts us then."""
        network, self._network = self._network, None
        if network is not None and self._site.clients is not None:
            self._site.clients.leave(network)

    # While it is AWAY: for who has it

    @property
    def taker(self) -> object:
        """Who was meant when the exchange was given away."""
        return self._exchange.taker

    def lend(self, stream: Stream | None, site: Site) -> Exchange:
        """Go on with the site of who has it, and with another stream, if any, which takes over what was read ahead."""
        if stream is not None:
            stream.ahead = self._stream.ahead
            self._stream = stream
        self.move(site)
        exchange = self._exchange
        exchange.lend(self._stream)
        return exchange

    def admit(self, request: Request) -> None:
        """See whether the next request may be served here, and whose it is. Raises Refused."""
        if self._proxy is not None:
            self._ask_proxy(self._proxy, request)
        if request.host != self._authority and not self._site.owns(request.host, self._authority):
            raise Refused(421, "not a name of this vhost")
        if request.length > self._site.settings.body_limit:
            raise Refused(413, "body over body_limit")

    def begin(self, request: Request, body: Body | None) -> None:
        """Begin with the next request, which was admitted."""
        site, stream = self._site, self._stream
        self._served += 1
        stream.sent = 0
        self._exchange.start(
            request,
            body,
            keep=request.keep_alive and self._served < site.requests_per_connection and not site.retiring,
        )
        if site.access is not None:
            self._owed = True
            self._since = monotonic() if site.access.timed else 0.0

    def answered(self) -> None:
        """All of an answer is sent: count it."""
        stats = self._site.stats
        stats.bytes_sent += self._stream.sent
        stats.responses[self._exchange.code // 100] += 1
        self._note()

    def wind_up(self) -> Want:
        """An answer is given to the stream, and isn't sent yet, or was the last one: count it, and go on with that."""
        stats = self._site.stats
        stats.bytes_sent += self._stream.sent
        stats.responses[self._exchange.code // 100] += 1
        return self._wind_up(self._exchange.request, self._exchange.body)

    def thrown(self, error: Exception) -> Want:
        """Who has it has met what it doesn't handle, or nobody is left to answer."""
        return self._thrown(error, self._exchange.request, self._exchange.body)

    def come_back(self, *, idle: bool, announced: bool = False) -> Want:
        """Be served here again. Idle: nothing of a further request was read; else the next turn goes on with what was,
        or ends the connection. `announced`: the client has said that it closes, and has nothing more to say.
        """
        stream = Stream(self.sock, self._site)
        stream.ahead = self._stream.ahead
        self._stream = stream
        self._exchange.lend(stream)
        self._owed = False
        self._announced = announced
        if idle and self._exchange.keep:
            return self._rest()
        return self._send_on()

    def lost(self, gone: ClientGone) -> Want:
        """Nobody is left to answer."""
        return self._gone(gone)

    # Serving

    def _serve(self) -> Want:
        """Serve the requests that were read ahead."""
        stream = self._stream
        site = self._site
        exchange = self._exchange
        access = site.access
        for _ in range(PIPELINE_BURST):
            data = stream.ahead
            if not data:
                return self._rest()
            request = None
            try:
                request = site.heads.read(data)
                if request is None:
                    return self._await_head()
                if self._proxy is not None:
                    self._ask_proxy(self._proxy, request)
                if request.host != self._authority and not site.owns(request.host, self._authority):
                    raise Refused(421, "not a name of this vhost")
                body = None
                if request.length:
                    body = self._body(request, len(data) - request.end)
                    if body is None:
                        return _READ
            except Refused as refused:
                return self._refuse(refused.status, refused.reason, request)
            stream.ahead = data[request.end :]
            self._served += 1
            stream.sent = 0
            keep = (
                request.keep_alive
                and self._served < site.requests_per_connection
                and not site.retiring
                and not self._last
            )
            exchange.start(request, body, keep=keep)
            if access is not None:
                self._owed = True
                self._since = monotonic() if access.timed else 0.0
            try:
                site.kind.handle(request, exchange)
            except Exception as error:  # noqa: BLE001 - whatever it was, it costs this request and not the worker
                return self._thrown(error, request, body)
            finally:
                if body is not None:
                    body.close()
            if exchange.state is not _RESPONDED:
                return self._part(request)
            stats = site.stats
            stats.bytes_sent += stream.sent
            stats.responses[exchange.code // 100] += 1
            if not exchange.keep or stream.pending:
                return self._wind_up(request, body)
            if access is not None:
                self._note()
            self._state = _IDLE
        # a client that pipelines more than that waits for its turn: the socket is writable, so it comes soon
        if not stream.ahead:
            return self._rest()
        return self._send_on()

    def _thrown(self, error: Exception, request: Request, body: Body | None) -> Want:
        """End the connection: its client has left, or the kind has met what it doesn't handle. That is a fault of ours,
        which a client could repeat at will.
        """
        if isinstance(error, ClientGone):
            return self._gone(error)
        site, exchange = self._site, self._exchange
        site.stats.errors += 1
        site.log.error(
            "request failed by a fault of the server",
            method=request.method,
            target=request.target.decode("latin-1"),
            traceback=traceback.format_exc(),
        )
        exchange.keep = False
        try:
            exchange.fail(500)
        except ClientGone as gone:
            return self._gone(gone)
        site.stats.bytes_sent += self._stream.sent
        site.stats.responses[exchange.code // 100] += 1
        return self._wind_up(request, body)

    def _wind_up(self, request: Request, body: Body | None) -> Want:
        """Finish an answer that isn't sent yet, or was the last one."""
        if not self._exchange.keep:
            # a client that said so itself sends nothing more
            self._announced = (
                not request.keep_alive and not self._stream.ahead and (body is None or body.done)
            )
        if self._stream.pending:
            return self._send_on()
        self._note()
        return self._end()

    def _part(self, request: Request) -> Want:
        """The connection is somebody else's: another process's, and our copy is closed without a word on it; or an
        event loop's beside us (aside.py).
        """
        site, state = self._site, self._exchange.state
        if state is _GIVEN:
            self._state = _AWAY
            return Want.AWAY
        if state is not _PARTED:
            raise AssertionError(f"the kind left the response {state}")
        site.stats.responses[HANDED_OVER // 100] += 1
        if self._owed and site.access is not None:
            self._owed = False
            site.access.add(self._exchange.client[0], request, HANDED_OVER, 0, self._since)
        self.detach()
        return _OVER

    def _rest(self) -> Want:
        """Everything that was read is served."""
        if self._last:
            return self._end()
        self._state = _IDLE
        self._exchange.forget()
        self._waiting_since = monotonic()
        return _READ

    def _send_on(self) -> Want:
        """Leave it to epoll to finish the answer, or to call us again."""
        self._state = _SENDING
        self._stream.watch()
        self._waiting_since = monotonic()
        return _WRITE

    def _look(self) -> Want:
        """See how the client takes the rest of its answer."""
        try:
            self._stream.look()
        except ClientGone as gone:
            return self._gone(gone)
        self._waiting_since = monotonic()
        return _WRITE

    def _await_head(self) -> Want:
        """The head isn't complete yet. Its deadline counts from its first byte; later ones don't move it."""
        if self._state is not _HEAD:
            self._waiting_since = monotonic()
        self._state = _HEAD
        return _READ

    def _receive_body(self) -> Want:
        stream = self._stream
        try:
            data = self.sock.recv(BODY_READ)
        except BlockingIOError:
            return self._look_at_body(0)
        except OSError as error:
            return self._gone(ClientGone(str(error)))
        if not data:
            return self._refuse(400, "the client closed in the middle of the body")
        stream.ahead += data
        self._left -= len(data)
        if self._left <= 0:
            return self._serve()
        return self._look_at_body(len(data))

    def _look_at_body(self, count: int) -> Want:
        """See how the body comes; `count` bytes just have."""
        pace, patience, now = self._pace, self._site.patience, monotonic()
        assert pace is not None
        pace.add(now - self._waiting_since, count, patience.body_rate)
        self._waiting_since = now
        if pace.left(patience.read, patience.body_rate, patience.grace) > 0:
            return _READ
        return self._refuse(
            408, pace.slow(patience.read, "of the body came", "read_timeout", "min_body_rate")
        )

    def _body(self, request: Request, there: int) -> Body | None:
        """Make what reads the request's body, of which `there` bytes have come. Raises Refused.

        None: it is a short one, and we wait for the rest; then its head is read once more.
        """
        settings = self._site.settings
        if request.length > settings.body_limit:
            raise Refused(413, "body over body_limit")
        if there < request.length <= settings.body_buffer and not request.expect:
            self._state = _BODY
            self._left = request.length - there
            self._pace = Pace()
            self._waiting_since = monotonic()
            return None
        return Body(
            self._stream,
            request.length,
            self._site.engine.chunked() if request.length == CHUNKED else None,
            expect=request.expect,
            limit=settings.body_limit,
        )

    def _note(self) -> None:
        """Put the answer that was being sent into the access log."""
        access = self._site.access
        if access is None or not self._owed:
            return
        self._owed = False
        exchange, sent = self._exchange, self._stream.sent
        access.add(
            exchange.client[0],
            exchange.request,
            exchange.code if sent else CLIENT_GONE,
            sent - exchange.head_size if sent > exchange.head_size else 0,
            self._since,
        )

    def taken_away(self, status: int = 0, sent: int = 0) -> None:
        """Put a request into the access log whose client was taken away from us; `status`: it has got that instead."""
        access, request = self._site.access, self._exchange.request
        if status and access is not None and self._owed:
            self._owed = False
            access.add(self._exchange.client[0], request, status, sent, self._since)
        self._note()

    def _note_refused(self, status: int, request: Request | None = None, sent: int = 0) -> None:
        """Put what was never given to the kind into the access log."""
        access = self._site.access
        if access is None:
            return
        client = self._exchange.client[0]
        if request is None:
            access.add_refused(client, self._stream.ahead, status, sent)
        else:
            access.add(client, request, status, sent, monotonic())

    def _ask_proxy(self, proxy: tuple[str, str], request: Request) -> None:
        """Learn from a trusted proxy's request whose it is. Raises Refused."""
        site, exchange = self._site, self._exchange
        assert site.proxies is not None
        exchange.client = proxy
        origin = exchange.origin = site.proxies.origin(proxy, request.fields)
        exchange.client = origin.address, origin.port
        if origin.host and not site.owns(origin.host, self._authority):
            raise Refused(421, "a trusted proxy names a host that is not of this vhost")

    def _refuse(self, status: int, reason: str, request: Request | None = None) -> Want:
        """Answer what isn't a request (or isn't ours) and end."""
        site = self._site
        if request is None and self._proxy is not None:
            self._exchange.client = self._proxy  # without a head nobody knows whose it is
        site.log.info("request refused", status=status, reason=reason, client=self._exchange.client[0])
        fields, content = site.page(status)
        head = f"HTTP/1.1 {STATUS[status]}\r\n{fields.text}Content-Length: {len(content)}\r\n{date_line()}{CLOSE}\r\n"
        if self._stream.ahead.startswith((b"HEAD ", b"\r\nHEAD ")):
            content = b""  # whatever else is wrong with it (RFC 9110 section 9.3.2)
        site.stats.responses[status // 100] += 1
        self._note_refused(status, request, len(content))
        self._state = _SENDING
        try:
            self._stream.send_whole(head.encode("latin-1") + content)
        except ClientGone as gone:
            return self._gone(gone)
        self._exchange.keep = False
        self._announced = False
        if self._stream.pending:
            return self._send_on()
        return self._end()

    # The end

    def _gone(self, gone: ClientGone) -> Want:
        self._site.stats.gone += 1
        self._site.log.debug("client gone", client=self._exchange.client[0], reason=str(gone))
        return self.abort()

    def _end(self) -> Want:
        """All is sent that will be. Close, or linger if the client may have bytes on their way."""
        try:
            if self._announced and not tcp.is_unread(self.sock):  # something, against its word: linger
                return self._shut()
            self._stream.forget()
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return self.abort()
        self._state = _LINGER
        self._linger_end = monotonic() + LINGER_TOTAL
        return self._linger()

    def _linger(self) -> Want:
        """Read and drop until the client closes too."""
        try:
            for _ in range(LINGER_BURST):
                if not self.sock.recv(BODY_READ):
                    return self.abort()
        except BlockingIOError:
            pass
        except OSError:
            return self.abort()
        self._waiting_since = min(monotonic(), self._linger_end - LINGER_TIMEOUT)
        return _READ
