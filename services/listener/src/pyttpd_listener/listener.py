"""listener: accepts, peeks, finds the name, hands on, and answers for every connection until a worker has taken it.

Theory of operation. A connection is in one of these states, and in one place for each:

    PREFACE    a proxy's, whose PROXY header isn't whole yet (`proxy_protocol`). Read by MSG_PEEK until it is; then the
               header, and no byte more, is taken out of the kernel.
    PEEKING    its head isn't whole yet. Read only by MSG_PEEK: every byte stays in the kernel for the worker. Waits in
               edge-triggered epoll: each new segment is an event, and EPOLLRDHUP tells of a half-close, after
               which a peek never says "end".
    WAITING    named: offered at the end of this turn, or later if umaster has no room or is away.
    OFFERED    ROUTE is sent; we keep our copy until SETTLED, REFUSE, RETRY or DROP.
    LINGERING  we have answered by ourselves and shut down our half; what the client still sends is read and
               dropped, since a close with bytes unread would send a reset and destroy the answer.

    PREFACE ─ header whole ─> PEEKING; malformed, missing or too slow: closed

    PEEKING ─ head whole ─> WAITING ─ sent ─> OFFERED ─ SETTLED, DROP ─> closed without shutdown: it is another's now
       │                       ^                │ ├ RETRY, umaster lost ─> if nobody has read from it: WAITING
       │ refused, too slow     └────────────────┼─┘
       └──────────> LINGERING <── REFUSE ───────┘        (if somebody has read from it: closed, unanswered)

"Nobody has read from it" means nothing but the PROXY header, if there was one; and nobody has claimed it. Otherwise it
is looked at again a moment later (tcp.py). A worker may still have it from a channel that has ended: so what we have
offered we recall before we offer it again, or answer it ourselves.

Who waits too long in PEEKING gets 408, in WAITING 503. PEEKING and LINGERING are what costs a client nothing, so these
make room: of one client's (`Client.network`) the oldest, when it has more than `max_unnamed_per_client` of them; and
when the process is full, the one that has been PEEKING (or if there is none, LINGERING) the longest, as soon as it has
had its chance (PATIENCE). Until then, and when all are on their way, nobody is accepted: who comes waits in the
kernel's queue. So whoever sends its head at once is served, whatever others do, if a moment later. Before it comes to
that there is *stress mode*: when most of `max_connections` is used, the deadlines of both states shrink.
"""

from __future__ import annotations

import enum
import re
import select
import socket
from collections import deque
from collections.abc import Iterable
from functools import partial
from itertools import islice

from pyttpd import confine, head, metrics, tcp
from pyttpd.channel import Channel
from pyttpd.config.shares import ListenerShare
from pyttpd.loop import READ, Deadlines
from pyttpd.networks import Networks
from pyttpd.rendezvous import LEFT
from pyttpd.roles import Channel as Directory
from pyttpd.service import Service
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Client, Drop, Goodbye, Message, Refuse, Retry, Route, Settled, Welcome
from pyttpd.wire.packets import MAX_FRAMES

from pyttpd_listener import proxy_protocol
from pyttpd_listener.answers import answer

_PEEK_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
#: Connections accepted in a turn, so that a flood of new ones can't keep the others waiting.
MAX_ACCEPTS = 64
#: What a client may still send after our answer until we close hard: more than sites take by default (body_limit, 10
#: MiB), since who uploads to a busy one sends all of it before it reads the 503. It costs us a few milliseconds.
MAX_LINGER_BYTES = 16 << 20
_LINGER_CHUNK = 65536
#: A head that comes in pieces is scanned with each as long as it is short. One that is longer is scanned again when
#: it may have its end, or has doubled: 60 KB take half a millisecond, and a client may send byte by byte.
CHEAP_HEAD = 1024
_HEAD_END = b"\n\r\n"
#: A socket that isn't ours any more is accepted from for so long (s): who has begun to connect comes through, also
#: those who say nothing, whom the kernel shows us after a second.
WITHDRAW_AFTER = 2.0
#: When draining, a connection that still hasn't sent its head is closed after so long (s).
DRAIN_HEAD_TIMEOUT = 1.0
SWEEP_INTERVAL = 0.25
#: So long (s) a client has to say something, or to read our answer, before it makes room for another. Who connects and
#: sends at once needs a moment all the same where hundreds of clients do so on a busy machine.
PATIENCE = 1.0
#: Stress mode begins and ends at these shares of the connections that we may have.
STRESS_FROM, STRESS_UNTIL = 0.75, 0.5
# Said with each call on a connection that has been offered: whoever it was given to shares its O_NONBLOCK with us.
_SEND = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_DONTWAIT)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
#: Where a tenant's metrics are on the shared port.
_METRICS_TARGET = re.compile(rb"/metrics/([a-z][a-z0-9-]{0,31})\Z")


class State(enum.Enum):
    """See the module's text."""

    PREFACE = "preface"
    PEEKING = "peeking"
    WAITING = "waiting"
    OFFERED = "offered"
    LINGERING = "lingering"


#: Others may have a copy.
_OFFERS = frozenset({State.WAITING, State.OFFERED})


class Connection:
    """A client's connection. Owns `sock`."""

    __slots__ = (
        "authority",
        "client",
        "crowd",
        "head_only",
        "id",
        "lingered",
        "mark",
        "peeked",
        "preface",
        "scanned",
        "sock",
        "state",
    )

    def __init__(self, sock: socket.SocketType, client: Client, id_: int, mark: int) -> None:
        self.sock = sock
        # For which our offer counts.
        self.mark = mark
        self.client = client
        self.id = id_
        self.state = State.PEEKING
        self.authority = ""
        # Its client's, while it is in one.
        self.crowd: dict[Connection, None] | None = None
        self.head_only = False
        self.lingered = 0
        # Bytes of its PROXY header: all that we have read of it.
        self.preface = 0
        # Bytes that were there when we last looked, and when we last scanned them.
        self.peeked = self.scanned = 0


class Listener:
    """The role."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = service.loop
        self._log = service.log
        self._budget = service.budget
        self._share: ListenerShare | None = None
        self._bounds = head.DEFAULT_BOUNDS
        self._proxies: Networks | None = None
        self._sockets: list[socket.socket] = []
        self._sealed = False
        self._accepting = False
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)
        self._next_id = 0
        self._fresh_mark = 0
        self._peeking = Deadlines(10.0)
        self._lingering = Deadlines(2.0)
        self._waiting_age = Deadlines(15.0)
        self._waiting: deque[Connection] = deque()
        # Those that this turn has named: WAITING, without an age yet.
        self._named: list[Connection] = []
        # The PEEKING and LINGERING connections of each client that has any, oldest first: no more entries than those.
        self._crowds: dict[bytes, dict[Connection, None]] = {}
        self._stressed = False
        self._offered: dict[int, Connection] = {}
        self._doubtful = tcp.SecondLook(self._offer_again, self._loop.call_later)
        self._umaster: Channel | None = None
        self._window = 0
        self._leaving_umaster = False
        # Counters, for the metrics.
        self.accepted = self.routed = self.settled = self.reoffered = self.dropped = self.stress_episodes = 0
        self.times_full = 0
        self.answers: dict[int, int] = {}
        self.evicted = {"full": 0, "client": 0}
        self.proxy_refused = dict.fromkeys(("untrusted", "missing", "malformed", "timeout"), 0)
        self._link = service.link(
            Directory.ROUTE,
            on_open=self._on_umaster,
            on_message=self._from_umaster,
            on_lost=self._umaster_lost,
        )
        self._budget.on_free.append(self._accept_again)
        service.on_drain(self._drain)
        service.fetch_sockets(self._collect, self._on_listener, on_withdrawn=self._on_withdrawn)
        service.fetch_shares(self._on_share)
        self._loop.after_turn.append(self._hand_on)
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    # ---- what we are given ----

    def _on_share(self, _: str, data: bytes) -> bool:
        share = ListenerShare.from_json(data)
        first = self._share is None
        self._share = share
        self._service.log_as(share.log)
        self._bounds = head.bounds_of(share.request_line_limit, share.max_headers)
        self._proxies = Networks(share.proxy_protocol) if share.proxy_protocol else None
        self._set_deadlines()
        if first:
            self._link.start()
            self._service.when_sealed(self._begin)
        return True

    def _begin(self) -> None:
        self._sealed = True
        self._accept_again()

    def _on_listener(self, name: str, sock: socket.socket) -> None:
        if name != self._service.options.name:
            self._log.error("init gave us another's socket", name=name)
            sock.close()
            return
        sock.setblocking(False)
        self._sockets.append(sock)
        self._fresh_mark = tcp.mark(sock)  # what is accepted inherits it
        if self._accepting:
            self._loop.add(sock.fileno(), READ, lambda _: self._accept(sock))
        else:
            self._accept_again()

    def _on_withdrawn(self, name: str, sock: socket.socket) -> None:
        """The socket isn't ours any more; nobody is let in any more where it is closed for all. Who is, is served."""
        self._log.info("a socket is withdrawn: what has come on it is accepted", name=name)
        self._loop.call_later(WITHDRAW_AFTER, lambda: self._close_listener(sock))

    def _close_listener(self, sock: socket.socket) -> None:
        if self._accepting and self._share is not None:
            self._accept(sock)
        self._loop.remove(sock.fileno())
        self._sockets.remove(sock)
        sock.close()
        if not self._sockets and not self._service.draining:
            self._accepting = False
            self._service.not_ready()
            self._log.warning("no socket is left: this listener isn't configured any more, and can go")

    def _accept_again(self) -> None:
        if self._accepting or self._share is None or not self._sealed or self._service.draining:
            return
        if self._full and self._dispensable() is None:
            return  # whoever goes calls us, and so does time
        self._accepting = bool(self._sockets)
        for sock in self._sockets:
            self._loop.add(sock.fileno(), READ, lambda _, sock=sock: self._accept(sock))  # type: ignore[misc]
        self._tell_ready()

    def _stop_accepting(self) -> None:
        self._accepting = False
        for sock in self._sockets:
            self._loop.remove(sock.fileno())

    def _tell_ready(self) -> None:
        if self._sockets and self._share is not None and self._umaster is not None:
            self._service.ready()

    # ---- accepting and peeking ----

    def _accept(self, listener: socket.socket) -> None:
        """Let in who has come, all before the first is looked at: meanwhile heads arrive."""
        assert self._share is not None
        fresh = []
        for _ in range(min(tcp.backlog(listener), MAX_ACCEPTS)):
            full = self._full
            oldest = self._dispensable() if full else None
            if full and oldest is None:
                self.times_full += 1
                self._stop_accepting()
                break
            try:
                sock, address = tcp.accept(listener)
            except BlockingIOError:
                break  # a sibling was quicker
            except OSError as error:
                # ECONNABORTED and the like: that client left. EMFILE can't be: the budget is below it.
                self._log.debug("accept", error=error.strerror)
                break
            client = Client(address[0], address[1])
            if self._proxies is not None and address[0] not in self._proxies:
                self._log_proxy_refused(client, "untrusted")
                sock.close()
                continue
            if oldest is not None:  # not before somebody is there to make room for
                self._evict(oldest, "full")
            self.accepted += 1
            self._budget.take()
            self._next_id += 1
            connection = Connection(sock, client, self._next_id, self._fresh_mark)
            if self._proxies is not None:
                connection.state = State.PREFACE
            fresh.append(connection)
        for connection in fresh:
            # Most clients' first bytes are there already: then epoll never hears of the connection.
            if not self._peek(connection):
                self._peeking.start(connection, self._loop.now)
                self._loop.add(connection.sock.fileno(), _PEEK_EVENTS, partial(self._on_peekable, connection))
                if connection.state is State.PEEKING:
                    self._join(connection)

    def _on_peekable(self, connection: Connection, events: int) -> None:
        before = connection.state
        if self._peek(connection):
            self._peeking.stop(connection)
        elif events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
            # The other half is closed, and the head will never be whole.
            self._peeking.stop(connection)
            self._close(connection)
        elif connection.state is not before:
            self._join(connection)

    def _take_preface(self, connection: Connection) -> bool | None:
        """Look for a whole PROXY header, and take it away. None: done; else as `_peek`."""
        try:
            size = connection.sock.recv_into(self._view, proxy_protocol.MAX_HEADER, _PEEK)
            header = proxy_protocol.parse(bytes(self._view[:size])) if size else None
            if header is not None:
                # It is there: we have just seen it.
                connection.sock.recv_into(self._view, header.size, _RECEIVE)
        except BlockingIOError:
            return False
        except proxy_protocol.Malformed as error:
            self._refuse_proxy(connection, str(error))
            return True
        except OSError:
            size, header = 0, None
        if header is not None:
            connection.preface = header.size
            connection.client = header.client or connection.client
            connection.state = State.PEEKING
            return None
        if size == 0:
            self._close(connection)
        return size == 0

    def _peek(self, connection: Connection) -> bool:
        """Look for a whole head; True when the connection is neither in PREFACE nor PEEKING any more (named, refused
        or gone).
        """
        assert self._share is not None
        if connection.state is State.PREFACE and (done := self._take_preface(connection)) is not None:
            return done
        limit = self._share.head_limit
        try:
            size = connection.sock.recv_into(self._view, limit, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            self._close(connection)
            return True
        if size == 0:
            self._close(connection)
            return True
        before, connection.peeked = connection.peeked, size
        if (
            CHEAP_HEAD < size < min(limit, 2 * connection.scanned)
            and self._buffer.find(_HEAD_END, max(0, before - len(_HEAD_END) + 1), size) < 0
        ):
            return False
        connection.scanned = size
        try:
            found = head.scan(bytes(self._view[:size]), limit, self._bounds)
        except head.Refused as refused:
            # whatever else is wrong with it (RFC 9110 section 9.3.2)
            connection.head_only = bytes(self._view[: min(size, 7)]).startswith((b"HEAD ", b"\r\nHEAD "))
            self._answer(connection, refused.status)
            return True
        if found is None:
            return False
        connection.head_only = found.method == b"HEAD"
        if self._share.mode == "metrics":
            target = _METRICS_TARGET.match(found.target)
            if target is None:
                self._answer(connection, 404)
                return True
            connection.authority = target[1].decode("ascii")
        else:
            connection.authority = found.host
        self._loop.remove(connection.sock.fileno())
        if connection.crowd is not None:
            self._part(connection)
        self._offer(connection)
        return True

    # ---- who makes room ----

    def _join(self, connection: Connection) -> None:
        """Count a connection that is PEEKING or LINGERING for its client; one too many costs the client its oldest."""
        assert self._share is not None
        most = self._share.max_unnamed_per_client
        if not most or connection.crowd is not None:
            return
        crowd = connection.crowd = self._crowds.setdefault(connection.client.network, {})
        crowd[connection] = None
        if len(crowd) > most:
            self._evict(next(iter(crowd)), "client")

    def _part(self, connection: Connection) -> None:
        crowd, connection.crowd = connection.crowd, None
        assert crowd is not None
        del crowd[connection]
        if not crowd:
            del self._crowds[connection.client.network]

    @property
    def _full(self) -> bool:
        assert self._share is not None
        return self._budget.exhausted or self._budget.used >= self._share.max_connections

    def _dispensable(self) -> Connection | None:
        """Return who makes room when we are full, if there is anybody."""
        for each in (self._peeking, self._lingering):
            if each.age(self._loop.now) >= PATIENCE:
                oldest = each.oldest()
                assert isinstance(oldest, Connection)
                return oldest
        return None

    def _evict(self, connection: Connection, reason: str) -> None:
        """Close a connection that is PEEKING or LINGERING, to make room."""
        self._peeking.stop(connection)
        self._lingering.stop(connection)
        self.evicted[reason] += 1
        self._close(connection)

    def _weigh(self) -> None:
        """Begin or end stress mode."""
        assert self._share is not None
        limit = min(self._budget.limit, self._share.max_connections)
        if self._budget.used >= limit * STRESS_FROM:
            stressed = True
        elif self._budget.used <= limit * STRESS_UNTIL:
            stressed = False
        else:
            return
        if stressed != self._stressed:
            self._stressed = stressed
            self._set_deadlines()
            if stressed:
                self.stress_episodes += 1
                self._log.warning("stress mode begins", connections=self._budget.used, limit=limit)
            else:
                self._log.info("stress mode ends")

    def _set_deadlines(self) -> None:
        share = self._share
        assert share is not None
        factor = share.stress_factor if self._stressed else 1.0
        most = DRAIN_HEAD_TIMEOUT if self._service.draining else float("inf")
        self._peeking.span = min(share.head_timeout * factor, most)
        self._lingering.span = share.linger_timeout * factor
        self._waiting_age.span = share.handover_timeout

    # ---- offering ----

    def _offer(self, connection: Connection) -> None:
        connection.state = State.WAITING
        self._named.append(connection)

    def _hand_on(self) -> None:
        """Offer what this turn has named, all in as few packets as may be; what umaster can't take now waits."""
        if not self._named:
            return
        named, self._named = self._named, []
        for connection in named[0 if self._waiting else self._send(named) :]:
            self._waiting.append(connection)
            self._waiting_age.start(connection, self._loop.now)

    def _send(self, connections: list[Connection]) -> int:
        """Offer `connections` to umaster; return how many it has got, the first ones."""
        room = self._window - len(self._offered)
        if self._umaster is None or self._leaving_umaster or room <= 0:
            return 0
        some = connections if len(connections) <= room else connections[:room]
        sent = self._umaster.send_all(
            [Route(one.id, one.client, one.authority, one.mark) for one in some],
            [one.sock.fileno() for one in some],
        )
        for connection in some[:sent]:
            connection.state = State.OFFERED
            self._offered[connection.id] = connection
        self.routed += sent
        return sent

    def _send_waiting(self) -> None:
        while self._waiting:
            some = list(islice(self._waiting, MAX_FRAMES))
            sent = self._send(some)
            for connection in some[:sent]:
                self._waiting.popleft()
                self._waiting_age.stop(connection)
            if sent < len(some):
                return

    def _offer_again(self, connection: Connection, ours: bool) -> None:
        """Offer a connection once more, if nobody has it: otherwise that one has answered, or never will."""
        if ours and _is_unread(connection):
            self.reoffered += 1
            self._offer(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self.dropped += 1
        self._forget(connection)

    # ---- umaster ----

    def _on_umaster(self, channel: Channel, welcome: Welcome) -> None:
        self._umaster = channel
        self._leaving_umaster = False
        self._window = welcome.credits
        channel.on_writable = lambda _: self._send_waiting()
        self._send_waiting()
        self._tell_ready()

    def _from_umaster(self, _: Channel, message: Message, _fd: int | None) -> None:
        match message:
            case Settled(ids):
                for id_ in ids:
                    connection = self._known(id_)
                    self.settled += 1
                    self._forget(connection)
                self._send_waiting()
            case Refuse(id_, status):
                self._answer(self._known(id_), status)
            case Retry(id_):
                self._doubtful.look(self._known(id_))
            case Drop(id_):
                self._drop(self._known(id_))
            case Goodbye():
                # It settles what is open, then it closes, and its successor is there to be connected to.
                self._leaving_umaster = True

    def _known(self, id_: int) -> Connection:
        connection = self._offered.pop(id_, None)
        if connection is None:
            raise RemoteProtocolError("forged-id", f"id {id_} is not offered")
        return connection

    def _umaster_lost(self, reason: str) -> None:
        (self._log.info if reason == LEFT else self._log.warning)(
            "umaster is gone", reason=reason, offered=len(self._offered)
        )
        self._umaster = None
        self._service.not_ready()
        offered, self._offered = self._offered, {}
        for connection in offered.values():
            self._doubtful.look(connection)

    # ---- answering and closing ----

    def _answer(self, connection: Connection, status: int) -> None:
        """Answer by ourselves, and linger."""
        if connection.state in _OFFERS and tcp.recall(connection) is not tcp.Whose.OURS:
            self._drop(connection)
            return
        self.answers[status] = self.answers.get(status, 0) + 1
        self._log.info(
            "request refused", status=status, client=connection.client.host, host=connection.authority or "-"
        )
        sock = connection.sock
        self._loop.remove(sock.fileno())
        try:
            # A fresh connection's send buffer takes this whole; what it doesn't take, a client that reads
            # nothing, is lost.
            sock.send(answer(status, head_only=connection.head_only), _SEND)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection)
            return
        connection.state = State.LINGERING
        self._lingering.start(connection, self._loop.now)
        self._loop.add(sock.fileno(), READ, lambda _: self._linger(connection))
        self._join(connection)

    def _refuse_proxy(self, connection: Connection, reason: str) -> None:
        """Close a connection in PREFACE. No answer: who speaks another protocol wouldn't understand it."""
        self._log_proxy_refused(connection.client, reason)
        self._close(connection)

    def _log_proxy_refused(self, client: Client, reason: str) -> None:
        self.proxy_refused[reason] += 1
        self._log.info("no PROXY header to believe: connection refused", reason=reason, client=client.host)

    def _linger(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._view, _LINGER_CHUNK, _RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        connection.lingered += size
        if size == 0 or connection.lingered > MAX_LINGER_BYTES:
            self._lingering.stop(connection)
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        """End the connection: nobody else has it. (A copy in flight may exist after all, hence the shutdown.)"""
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        """Close our copy and nothing more: the connection is somebody else's."""
        if connection.crowd is not None:
            self._part(connection)
        # Always out of epoll first: with a copy elsewhere, close() alone would leave it registered (epoll(7)).
        self._loop.remove(connection.sock.fileno())
        connection.sock.close()
        self._budget.give()
        if not self._accepting:
            self._accept_again()  # of max_connections, which may be below it, the budget knows nothing

    # ---- time ----

    def _sweep(self) -> None:
        now = self._loop.now
        if self._share is not None:
            self._weigh()
            self._accept_again()  # if somebody has had its chance by now
        for connection in self._peeking.expired(now):
            assert isinstance(connection, Connection)
            if connection.state is State.PREFACE:
                self._refuse_proxy(connection, "timeout")
            elif self._service.draining or not _has_sent(connection.sock):
                self._close(connection)  # it never said anything, and wants no answer (RFC 9112, 9.5)
            else:
                self._answer(connection, 408)
        for connection in self._lingering.expired(now):
            assert isinstance(connection, Connection)
            self._close(connection)
        late = self._waiting_age.expired(now)
        if late:
            gone = set(late)
            self._waiting = deque(connection for connection in self._waiting if connection not in gone)
            for connection in late:
                assert isinstance(connection, Connection)
                self._answer(connection, 503)
        self._send_waiting()  # ETOOMANYREFS has no event of its own
        if self._service.draining and self._may_leave():
            self._service.leave()
            return
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _open(self) -> int:
        named = len(self._named) + len(self._waiting) + len(self._offered) + len(self._doubtful)
        return len(self._peeking) + len(self._lingering) + named

    def _drain(self) -> None:
        self._stop_accepting()
        if self._share is not None:
            self._set_deadlines()
        if self._may_leave():
            self._service.leave()

    def _may_leave(self) -> bool:
        # Without a successor that has them, the listening sockets are only ours and init's, which may have just ended.
        return not self._open() and self._service.relieved

    # ---- metrics ----

    def _collect(self) -> Iterable[metrics.Metric]:
        yield from self._service.about()
        counter = metrics.CounterMetricFamily
        yield counter("pyttpd_listener_accepted", "Connections accepted.", self.accepted)
        states = metrics.GaugeMetricFamily(
            "pyttpd_listener_connections", "Connections that we answer for.", labels=["state"]
        )
        for state, count in (
            # those in PREFACE are among them
            (State.PEEKING, len(self._peeking)),
            (State.WAITING, len(self._named) + len(self._waiting)),
            (State.OFFERED, len(self._offered) + len(self._doubtful)),
            (State.LINGERING, len(self._lingering)),
        ):
            states.add_metric([state.value], count)
        yield states
        yield counter("pyttpd_listener_routed", "Connections offered to umaster.", self.routed)
        yield counter("pyttpd_listener_settled", "Connections that a worker has taken.", self.settled)
        yield counter("pyttpd_listener_reoffered", "Connections offered again, unread.", self.reoffered)
        yield counter("pyttpd_listener_dropped", "Connections whose worker was lost with them.", self.dropped)
        evicted = counter(
            "pyttpd_listener_evicted",
            "Connections closed before their head came, or after our answer, to make room.",
            labels=["reason"],
        )
        for reason, count in self.evicted.items():
            evicted.add_metric([reason], count)
        yield evicted
        yield counter(
            "pyttpd_listener_full",
            "Times that nobody was accepted any more, for want of descriptors or by max_connections.",
            self.times_full,
        )
        refused = counter(
            "pyttpd_listener_proxy_refused",
            "Connections closed for want of a PROXY header that is believed.",
            labels=["reason"],
        )
        for reason, count in self.proxy_refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield metrics.GaugeMetricFamily(
            "pyttpd_listener_stress", "1 while the deadlines are shrunk.", int(self._stressed)
        )
        yield counter(
            "pyttpd_listener_stress_episodes", "Times that stress mode began.", self.stress_episodes
        )
        answers = counter("pyttpd_listener_answers", "Answers that we gave by ourselves.", labels=["status"])
        for status, count in sorted(self.answers.items()):
            answers.add_metric([str(status)], count)
        yield answers


def _is_unread(connection: Connection) -> bool:
    """Nobody has read from it. (Our workers don't before they have claimed it; a tenant may have.)"""
    try:
        return tcp.consumed(connection.sock) == connection.preface
    except OSError:
        return False


def _has_sent(sock: socket.SocketType) -> bool:
    try:
        return bool(sock.recv(1, _PEEK))
    except OSError:
        return False


def serve(service: Service) -> None:
    """Run a listener in this process."""
    service.give_way()
    service.confine(confine.role_policy())
    Listener(service)
    service.run()
