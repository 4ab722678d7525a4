"""Many requests with applications in other processes at once, in one thread: what serves the kinds fastcgi and scgi
beside a worker's threads (aside.py), without one of its own.

Theory of operation. A worker that waited for one application at a time would be woken for each request, and where many
tenants share a core it comes back each time to caches that are the others'. Here all are waited for at once, by an
epoll that is one descriptor of the worker's: for clients' next requests, and for what applications say. Whatever has
come meanwhile is served in one turn, of the thread that leads. A request's bytes are its relay's affair (relay.py).

    taken ──> waiting, if no connection to its application is to be had ──> asked, at once ── its whole answer ──> idle
                                                                               └─> in full ── the answer's end ──> idle
    idle ── the next request ──> waiting or asked            idle for IDLE_FOR, or anything else comes ──> given back

Rules:
- The worker reads each first head, and whatever isn't a head that has come whole, without a body. A body of at most
  body_buffer comes with the exchange; a longer one is passed on by the worker's thread (sockets.py).
- Everything here happens under `_lock`, and nothing waits for anybody. So it is used only where the vhost's mounts are
  of kinds that run nothing of the tenant's in this process, and where one worker has all of the vhost's connections: a
  request that was read can't go to a sibling (`serves`).
- There are at most `SocketKind.most` connections to an application; who would have one more waits here for one of them.
  At most MAX_WAITING requests, or MAX_HELD bytes of them, do: more are answered 503.
- A connection is kept only if it and all others are no more than may be kept: another one may be waiting, in the
  application's queue, for the very process that an idle one takes.
- Patience with clients and applications is the relay's, looked at every LOOK; waiting for a connection counts as the
  application's silence.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from pyttpd.config.kinds import FastcgiOptions, ScgiOptions, StaticOptions
from pyttpd.head import Refused

from pyttpd_vhost.aside import Load
from pyttpd_vhost.http.errors import ClientGone, RequestError
from pyttpd_vhost.http.exchange import State
from pyttpd_vhost.http.paths import BadPathError
from pyttpd_vhost.http.patience import LOOK
from pyttpd_vhost.http.stream import HEAD_READ
from pyttpd_vhost.kinds.gateway.backends import KEEP_FOR, Line
from pyttpd_vhost.kinds.gateway.bodies import NOTHING, Source, Whole
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault, report
from pyttpd_vhost.kinds.gateway.kind import IDEMPOTENT, redirect
from pyttpd_vhost.output import SLOW

if TYPE_CHECKING:
    from pyttpd.config.shares import VhostShare

    from pyttpd_vhost.aside import Host
    from pyttpd_vhost.http.connection import Want
    from pyttpd_vhost.http.engine import Request
    from pyttpd_vhost.http.exchange import Exchange
    from pyttpd_vhost.kinds.gateway.relay import Relay
    from pyttpd_vhost.kinds.gateway.sockets import Conversation, SocketKind
    from pyttpd_vhost.parking import Parked
    from pyttpd_vhost.site import Site

#: Events taken at a time.
EVENTS = 256
#: A connection that has been idle for so long (s) is given back, to be parked, or to go to a sibling.
IDLE_FOR = LOOK
#: With so many requests in hand a worker is given no more connections: they wait in umaster.
MOST = 256
#: Requests on connections that it has may be more; what waits takes memory.
MAX_WAITING = 4096
MAX_HELD = 16 << 20
_CLIENT = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_GONE = select.EPOLLERR | select.EPOLLHUP
_GIVEN, _DONE = State.GIVEN, State.DONE


def serves(share: VhostShare) -> bool:
    """Whether a vhost's requests may be served so: it has one worker, in which no mount runs the tenant's code."""
    return share.pool.max_workers == 1 and all(
        isinstance(mount.options, FastcgiOptions | ScgiOptions | StaticOptions) for mount in share.mounts
    )


class Given(NamedTuple):
    """What an exchange is given away with: its request, or what a local redirect has made of it, and the whole body."""

    kind: SocketKind
    request: Request
    body: bytes


class Call:
    """A client's connection while it is here. `kind` is whom its request is for; None: it is idle."""

    __slots__ = (
        "body",
        "connection",
        "conversation",
        "exchange",
        "fd",
        "first",
        "in_full",
        "kept",
        "kind",
        "line",
        "one",
        "queued",
        "readable",
        "relay",
        "reported",
        "request",
        "since",
        "told",
    )
    relay: Relay
    conversation: Conversation
    request: Request

    def __init__(self, one: Parked, site: Site) -> None:
        self.one = one
        self.fd = one.fd
        self.connection = one.connection
        self.exchange: Exchange = one.connection.lend(None, site)
        self.kind: SocketKind | None = None
        #: The connection to the application, None: there is none yet. `kept`: it was another request's before.
        self.line: Line | None = None
        self.kept = False
        #: It waits for one (`SocketKind.waiting`).
        self.queued = False
        self.first = b""
        self.body: Source = NOTHING
        #: The relay waits for both sides in full, with events of its own.
        self.in_full = False
        #: Its client has sent something that isn't read.
        self.readable = False
        #: Since when it is idle, or its request is here; when the application was told.
        self.since = self.told = monotonic()
        self.reported = False

    @property
    def size(self) -> int:
        """Bytes that its request takes up."""
        return len(self.first) + self.body.length


class _Watcher:
    """What a relay in full asks for events."""

    def __init__(self, board: Switchboard, call: Call) -> None:
        self._board = board
        self._call = call

    def register(self, fd: int, eventmask: int, /) -> None:
        self._board.watch(fd, eventmask, self._call)

    def unregister(self, fd: int, /) -> None:
        self._board.unwatch(fd)


class Switchboard:
    """`Aside`; see the module's text. One for all mounts of these kinds (`kinds`)."""

    def __init__(self, site: Site) -> None:
        self.site = self._home = site
        self.kinds: list[SocketKind] = []
        self.begun = False
        self.fd = -1
        self.full = False
        self.most = MOST
        self.slow_requests = self.timed_out = 0
        self._lock = threading.RLock()
        self._host: Host = None  # type: ignore[assignment]
        self._epoll: select.epoll = None  # type: ignore[assignment]  # there is one from `begin` on
        #: Whose each descriptor is that epoll knows.
        self._calls: dict[int, Call] = {}
        #: Connections to applications that wait for the next request; that epoll knows them, too.
        self._idle: dict[int, tuple[SocketKind, Line]] = {}
        self._here: dict[Call, None] = {}
        #: How many requests wait for a connection to their application (`SocketKind.waiting`), and bytes they have.
        self._waiting = 0
        self._held = 0
        self._slow_after = site.share.pool.slow_request
        self._end_after = site.share.pool.request_timeout
        self._leaving = False
        self._held_back = False
        self._load = Load()

    # ---- for the worker ----

    def begin(self, host: Host) -> None:
        """See `Aside.begin`."""
        self._host = host
        self.site = self._home.for_thread()
        self._epoll = select.epoll()
        self.fd = self._epoll.fileno()
        self.begun = True

    def run(self) -> None:
        """See `Aside.run`. The worker's threads do all."""

    def turn(self) -> None:
        """See `Aside.turn`."""
        calls = self._calls
        with self._lock:
            self._home.turn = object()  # by which the files beside the scripts go
            for fd, event in self._epoll.poll(0, EVENTS):
                call = calls.get(fd)
                if call is not None:
                    self._do(self._turn, call, fd, event)
                elif fd in self._idle:
                    self._drop(*self._idle[fd])  # closed by the application, or it says something out of turn
            if self._waiting:
                self._serve_waiting()

    def take(self, one: Parked) -> None:
        """See `Aside.take`."""
        with self._lock:
            call = Call(one, self.site)
            self._here[call] = None
            self._do(self._ask, call)

    @property
    def hurry(self) -> bool:
        """See `Aside.hurry`."""
        return self._waiting > 0

    def leave(self) -> None:
        """See `Aside.leave`."""
        self._leaving = True

    def finish(self) -> bool:
        """See `Aside.finish`."""
        return True

    def end(self) -> None:
        """See `Aside.end`."""

    def fork(self, dup_dead: Callable[[Parked], None]) -> None:
        """See `Aside.fork`. Nothing here forks; whoever does has nothing of it."""
        for one in self.taken():
            dup_dead(one)

    @property
    def busy(self) -> bool:
        """See `Aside.busy`."""
        return bool(self._here)

    def taken(self) -> Iterable[Parked]:
        """See `Aside.taken`."""
        return [call.one for call in list(self._here)]

    def _in_hand(self) -> int:
        return sum(call.kind is not None for call in list(self._here))

    def excess(self, credit: int) -> int:
        """See `Aside.excess`."""
        excess = max(0, self._in_hand() + credit - self.most)
        if excess:
            self._held_back = True
        return excess

    def look(self, now: float) -> Load:
        """See `Aside.look`."""
        load = self._load
        load.connections = len(self._here)
        load.requests = self._in_hand()
        load.waiting = self._waiting
        # Only then is there no room for what comes next: waiting for applications is no work.
        load.busy = 1.0 if load.waiting else 0.0
        return load

    def stuck_for(self, now: float) -> float:
        """See `Aside.stuck_for`. The worker's threads are looked at themselves."""
        return 0.0

    # ---- epoll ----

    def watch(self, fd: int, events: int, call: Call) -> None:
        """Wait for `events` of `fd`, which is one of `call`'s."""
        if fd in self._calls:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self._calls[fd] = call

    def unwatch(self, fd: int) -> None:
        """Wait for `fd` no more. Before it is closed: somebody may have a copy (epoll(7), Q6)."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # ---- a connection ----

    def _do(self, step: Callable[..., None], call: Call, *args: object) -> None:
        """Take a step with `call`; whatever it raises is this request's affair."""
        try:
            step(call, *args)
        except Exception as error:  # noqa: BLE001 - it costs this request and not the worker
            try:
                self._fail(call, error)
            except Exception as fault:  # noqa: BLE001 - as above
                self._give_back(call, call.connection.thrown(fault))

    def _turn(self, call: Call, fd: int, event: int) -> None:
        """Something has happened on `fd`."""
        if call.in_full:
            call.relay.go_on([(fd, event)])
            if call.relay.over:
                self._finish(call)
        elif fd != call.fd:
            self._hear(call)
        elif call.kind is not None:
            if event & _GONE:
                raise ClientGone("the client has reset its connection")
            call.readable = True
        else:
            self._next(call)

    def _next(self, call: Call) -> None:
        """Read the next request of an idle connection. What isn't simply one is the worker's."""
        connection, site = call.connection, self.site
        call.readable = False
        try:
            data = connection.sock.recv(HEAD_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._give_back(call, connection.abort())
            return
        exchange = call.exchange
        stream = exchange.stream
        stream.ahead = data
        try:
            request = site.heads.read(data)
            if request is None or request.length or len(data) == HEAD_READ:
                self._give_back(call, connection.come_back(idle=False))
                return
            connection.admit(request)
        except Refused:  # by the worker, which says why
            self._give_back(call, connection.come_back(idle=False))
            return
        stream.ahead = data[request.end :]
        connection.begin(request, None)
        site.kind.handle(request, exchange)
        if exchange.state is _GIVEN:
            exchange.lend(stream)
            self._ask(call)
        else:
            self._answered(call)

    def _ask(self, call: Call) -> None:
        """Ask the application that the exchange was given away for."""
        given = call.exchange.taker
        assert isinstance(given, Given)
        kind = call.kind = given.kind
        call.request = given.request
        call.body = Whole(given.body) if given.body else NOTHING
        call.since = monotonic()
        call.reported = False
        first = kind.question(call.request, call.exchange, call.body)
        if first is None:
            self._answered(call)
            return
        call.first = first
        self._dial(call)

    def _dial(self, call: Call, *, anew: bool = False, turn: bool = False) -> None:
        """Tell the application, on a connection that is there or on a new one (`anew`). Who finds none waits, and who
        comes behind others that do, until it is its turn.
        """
        kind = call.kind
        assert kind is not None
        if kind.lines >= kind.most or (kind.waiting and not turn):
            self._wait(call, kind)
            return
        line = None if anew else self._kept(kind, call.request)
        call.kept = line is not None
        if line is None:
            try:
                line = kind.backend.connect(0.0)
            except BackendError as error:
                if error.fault is not Fault.FULL or monotonic() - call.since >= kind.backend.patience:
                    raise
                self._wait(call, kind)
                return
        kind.lines += 1
        kind.backend.place.begin()
        call.line = line
        call.conversation = kind.conversation()
        relay = call.relay = kind.relay(line, call.conversation, call.exchange, call.first, call.body)
        call.told = monotonic()
        if call.kept:
            self._calls[line.reading] = call
        else:
            self.watch(line.reading, select.EPOLLIN, call)
        relay.start()
        if not relay.told:
            self._go_on_in_full(call)

    def _kept(self, kind: SocketKind, request: Request) -> Line | None:
        """Return a connection that was kept; epoll knows it already."""
        while kind.idle:
            line = kind.idle.pop()
            del self._idle[line.reading]
            # Its end may just have come. Where asking twice does no harm, that is seen soon enough.
            if request.method in IDEMPOTENT or line.quiet:
                return line
            self._epoll.unregister(line.reading)
            line.close()
        return None

    def _drop(self, kind: SocketKind, line: Line) -> None:
        """Close a connection that was kept."""
        kind.idle.remove(line)
        del self._idle[line.reading]
        self._epoll.unregister(line.reading)
        line.close()

    @contextmanager
    def room_for(self, kind: SocketKind) -> Iterator[None]:
        """Let a thread of the worker's have a connection of its own: none is kept meanwhile that might take the process
        for which it waits.
        """
        with self._lock:
            kind.wanted += 1
            for line in kind.idle[:]:
                self._drop(kind, line)
        try:
            yield
        finally:
            with self._lock:
                kind.wanted -= 1

    def _wait(self, call: Call, kind: SocketKind) -> None:
        if self._waiting >= MAX_WAITING or self._held >= MAX_HELD:
            raise BackendError(Fault.FULL, f"{self._waiting} requests wait already")
        kind.waiting.append(call)
        call.queued = True
        self._waiting += 1
        self._held += call.size

    def _waited(self, call: Call) -> None:
        """`call` waits no longer; it is out of the queue."""
        call.queued = False
        self._waiting -= 1
        self._held -= call.size

    def _hear(self, call: Call) -> None:
        """The application says something, for the first time."""
        if call.relay.hear():
            self._finish(call)
        else:
            self._go_on_in_full(call)

    def _go_on_in_full(self, call: Call) -> None:
        now = monotonic()
        call.in_full = True
        silent = 0.0 if call.relay.heard else now - call.told
        call.relay.pass_on_by(_Watcher(self, call), silent=silent, spent=now - call.since)
        if call.relay.over:
            self._finish(call)

    def _finish(self, call: Call) -> None:
        """The application has said all."""
        target = call.relay.finish()
        self._let_go(call)
        exchange = call.exchange
        if target:
            redirected = redirect(call.request, target)
            exchange.body = None
            self.site.kind.handle(redirected, exchange)
            if exchange.state is _GIVEN:
                exchange.lend(exchange.stream)
                self._ask(call)
                return
        self._answered(call)

    def _let_go(self, call: Call) -> None:
        """The application has nothing more to do with it."""
        line, kind = call.line, call.kind
        if call.queued and kind is not None:
            kind.waiting.remove(call)
            self._waited(call)
        if line is None or kind is None:
            return
        call.line = None
        kind.lines -= 1
        kind.backend.place.end()
        call.relay.close()
        if (
            kind.may_keep(call.relay, call.conversation)
            and kind.lines + len(kind.idle) < kind.backend.most_kept
            and not (self._leaving or kind.wanted)
        ):
            if call.in_full:
                self.watch(line.reading, select.EPOLLIN, call)
            del self._calls[line.reading]
            line.since = monotonic()
            kind.idle.append(line)
            self._idle[line.reading] = kind, line
        else:
            self.unwatch(line.reading)
            kind.give_up(line, call.relay)
        if call.in_full:
            call.in_full = False
            self.unwatch(call.fd)
        if self._held_back:
            self._held_back = False
            self._host.give_credit()

    def _answered(self, call: Call) -> None:
        """The answer is given to the stream: wait for the next request, or leave the rest to the worker."""
        connection, exchange = call.connection, call.exchange
        if exchange.state is not _DONE:
            raise AssertionError(f"the response was left {exchange.state}")
        call.kind = None
        stream = exchange.stream
        if not exchange.keep or stream.pending:
            self._give_back(call, connection.wind_up())
            return
        connection.answered()
        if stream.ahead or self._leaving:
            self._give_back(call, connection.come_back(idle=not stream.ahead))
            return
        exchange.forget()
        call.since = monotonic()
        if call.fd not in self._calls:
            self.watch(call.fd, _CLIENT, call)
        if call.readable:
            call.readable = False
            self._turn(call, call.fd, select.EPOLLIN)

    def _fail(self, call: Call, error: Exception) -> None:
        """Answer for what went wrong, or ask once more."""
        exchange, kind = call.exchange, call.kind
        if (
            isinstance(error, BackendError)
            and call.line is not None
            and call.kept
            and kind is not None
            and kind.may_ask_again(error, call.relay, call.request, call.body)
        ):
            self._let_go(call)
            call.body.rewind()
            self._dial(call, anew=True, turn=True)
            return
        self._let_go(call)
        if isinstance(error, BackendError) and kind is not None:
            report(exchange, kind.mount, kind.path, error)
        elif isinstance(error, RequestError):
            exchange.fail(error.status)
        elif isinstance(error, BadPathError):
            exchange.fail(400)
        else:
            self._give_back(call, call.connection.thrown(error))
            return
        self._answered(call)

    def _give_back(self, call: Call, want: Want) -> None:
        """The connection is the worker's again."""
        self._let_go(call)
        call.kind = None
        self.unwatch(call.fd)
        self._here.pop(call, None)
        call.connection.move(self._home)
        self._host.settle(call.one, want)

    # ---- time ----

    def _serve_waiting(self) -> None:
        """Go on with who waits, as far as there is room now."""
        for kind in self.kinds:
            for _ in range(min(len(kind.waiting), kind.most - kind.lines)):
                call = kind.waiting.popleft()
                self._waited(call)
                self._do(self._dial_in_turn, call)

    def _dial_in_turn(self, call: Call) -> None:
        self._dial(call, turn=True)

    def sweep(self, now: float) -> None:
        """See `Aside.sweep`."""
        with self._lock:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        for call in list(self._here):
            if call not in self._here:
                continue
            if call.kind is None:
                if self._leaving or now - call.since >= IDLE_FOR:
                    self._give_back(call, call.connection.come_back(idle=True))
                continue
            age = now - call.since - call.connection.waited(now)
            if self._slow_after and age >= self._slow_after and not call.reported:
                self._report(call, age)
            if call.in_full:
                self._do(self._look_at, call)
            elif call.line is None:
                self._do(self._look_at_waiting, call, now)
            elif now - call.told >= LOOK:
                self._do(self._go_on_in_full, call)
        for kind in self.kinds:
            for line in kind.idle[:]:
                if self._leaving or now - line.since >= KEEP_FOR:
                    self._drop(kind, line)

    def _look_at(self, call: Call) -> None:
        call.relay.go_on([])
        if call.relay.over:
            self._finish(call)

    def _look_at_waiting(self, call: Call, now: float) -> None:
        kind = call.kind
        assert kind is not None
        limit = kind.read_timeout
        if self._end_after:
            limit = min(limit, self._end_after)
        if now - call.since >= limit:
            raise BackendError(Fault.SLOW, f"none of its processes was free for {limit:g} s")

    def _report(self, call: Call, age: float) -> None:
        call.reported = True
        self.slow_requests += 1
        self.site.log.warning(
            SLOW,
            method=call.request.method,
            host=call.request.host,
            path=call.request.target.decode("latin-1"),
            seconds=round(age, 3),
        )
