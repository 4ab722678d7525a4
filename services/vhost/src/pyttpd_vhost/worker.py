"""A worker: serves connections that umaster gives it, with one thread or several.

Theory of operation. The *main thread* turns the loop: epoll, then for each ready connection as many requests
as its bytes allow. Between turns connections are parked in epoll (parking.py); who takes one out of `parked`
is the only one who may touch it. With `max_threads` above 1 it may become a crowd (crew.py): then one thread
at a time waits in epoll, takes one connection, lets another one wait, and serves it.

The *watcher thread* sleeps nearly all the time. It says that we are alive, keeps our row of the scoreboard,
audits the requests (audit.py), and sees what busy threads can't:

    a request has waited for thread_wait, all threads are busy     another thread
    nobody has looked for PASS_AFTER, or all of max_threads are    what umaster has given us meanwhile, and every
    busy and a request has waited for that long                    parked connection that has become readable, goes
                                                                   unread to a sibling that is free
                                                                   (DESIGN section 3, "No waiting behind a busy
                                                                   sibling")
    a request has had its request_timeout                          its client gets 504, and we leave

`_lock` is held by whoever uses a channel or the loop's timers, never while the application is called.

    given (Dispatch) ── Taken ──> served at once ──> parked <──────── Refuse, Retry ──┐
                                      │                 ├── readable while we are busy, or retiring: Pass
                                      └── closed        └── readable ──> served        └── Settled ──> a sibling's

Credit is what the worker can take: each connection given uses one up. It is given back when a thread looks for
more, less one for each thread that is busy: so umaster sees by it who has threads free. One that serves quickly and
alone has MORE_CREDIT.

In step with: wire/permits.py (Kind.WORKER), pyttpd_umaster.router.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from pyttpd import privileges, tcp
from pyttpd.channel import Channel, Faults
from pyttpd.log import Log
from pyttpd.loop import READ, RESERVE, WRITE, Loop, soft_descriptor_limit
from pyttpd.wire.messages import (
    Attach,
    Beat,
    Credit,
    Detached,
    Dispatch,
    Drop,
    Goodbye,
    Message,
    Ready,
    Refuse,
    Retry,
    Settled,
    Taken,
)
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost.access import BATCH, INTERVAL
from pyttpd_vhost.audit import Audit
from pyttpd_vhost.crew import Crew, Server
from pyttpd_vhost.http.connection import Want
from pyttpd_vhost.offers import Offers
from pyttpd_vhost.output import redirect
from pyttpd_vhost.parking import Parked, Parking
from pyttpd_vhost.scoreboard import (
    HOST_SIZE,
    PATH_SIZE,
    STATE_LEAVING,
    STATE_SERVING,
    Row,
    Scoreboard,
)
from pyttpd_vhost.waits import Processor, Waits

if TYPE_CHECKING:
    from pyttpd_vhost.aside import Aside
    from pyttpd_vhost.site import Site

#: Connections that umaster may give us before we have looked at the first: hides the way there and back.
CREDIT = 8
#: Credit is given back in portions, as long as umaster has enough of it left for us.
CREDIT_PORTION = 4
#: So many more as long as requests are quick (QUICK), so that the next packet is there when one is served. It lies in
#: our channel untaken, so it isn't lost with us; behind a slow request it would wait, so then it isn't given back.
MORE_CREDIT = 8
#: umaster's bound for one worker (pyttpd_umaster.router.MAX_CREDIT).
MAX_CREDIT = 64
BEAT_INTERVAL = 1.0
#: When nobody has looked for what comes for so long (s), others' connections are passed on.
PASS_AFTER = 0.05
SWEEP_INTERVAL = 0.5
#: So many parked connections are looked at in one go; then, for so long (s), whoever wants something comes first. But
#: all have been looked at after so long (s).
SWEEP_PART, SWEEP_PAUSE, SWEEP_WITHIN = 1024, 0.001, 0.1
#: Bytes that a worker holds of heads and short bodies that aren't whole, of all its connections. Beyond it those go
#: that have sent the most, until half is left: with two workers, and what comes between two sweeps, that fits into the
#: memory that compose gives a tenant.
HELD_LIMIT = 64 << 20
#: A connection that has been idle for less (s) isn't closed to make room: its client's next request may be on its way.
#: And so often at the most (s) somebody is looked for who has been idle for longer.
JUST_IDLE, ROOM_LOOK = 1.0, 0.1
#: While it leaves, a worker looks so often (s) whether it is done.
LEAVING_INTERVAL = 0.05
#: A worker that leaves waits for others to take its idle connections: for this share of `grace`, as siblings may all be
#: busy, or have to be started first; and umaster may be replaced meanwhile.
PASS_SHARE = 0.5
#: What a supervisor asks for with Goodbye: to leave for siblings, for successors that come, or for nobody.
RETIRE, REPLACED, STOP = "retire", "replaced", "stop"
#: With threads to be had, the watcher looks so often (s) whether one is needed, when nothing was a moment ago.
THREAD_LOOK = 0.02
#: And so often at the most, however small thread_wait is.
SHORTEST_LOOK = 0.005
#: Events taken at a time: by a thread that serves them all itself, and by one of a crowd, which takes the first.
EVENTS, CROWD_EVENTS = 256, 16
#: A request that takes less (s) is quicker than what a crowd costs it; after so many in a row one serves alone.
QUICK, CALM = 0.001, 16
# Names of the module: each is looked up for each connection.
_READ, _CLOSED, _AWAY = Want.READ, Want.CLOSED, Want.AWAY
_IPV4, _IPV6, _STREAM = int(socket.AF_INET), int(socket.AF_INET6), int(socket.SOCK_STREAM)
#: What the worker says to its supervisor when a request has had its time (wire: Goodbye).
TIMED_OUT = "request-timeout"
#: ... and when somebody else has asked it to leave (SIGTERM).
ASKED = "asked"


class Worker(Loop):
    """The worker's process. Owns `control`, its channel to the supervisor."""

    def __init__(
        self,
        site: Site,
        control: socket.socket,
        scoreboard: Scoreboard,
        slot: int,
        number: int,
        log: Log,
    ) -> None:
        super().__init__()
        pool = site.share.pool
        self._site = site
        self._scoreboard = scoreboard
        self._slot = slot
        self._number = number
        self._counted = time.monotonic()
        self._memory_at_birth = _peak_memory()
        self._born = int(time.time() * 1000)
        self._busy_ms = 0
        self._log = log
        self._faults = Faults()
        self._parking = Parking(self._epoll)
        self._parked = self._parking.parked
        self._offers = Offers(
            self._parking, lambda one: self._settle(None, one, _READ), later=self.call_later
        )
        self._fresh: deque[Parked] = deque()
        # Of the packet that is being looked at: what we haven't taken yet, with its client's host, which is made anew
        # each time that it is asked for.
        self._came: list[tuple[socket.SocketType, str, Dispatch]] = []
        self._spent = 0
        # Connections that we may have: what the application opens comes out of the same limit.
        self._room = max(1, (soft_descriptor_limit() - RESERVE) * 3 // 4 - CREDIT - MORE_CREDIT)
        self._channel: Channel | None = None
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._crew = Crew(site, most=pool.max_threads, idle_after=pool.thread_idle)
        self._credit = min(MAX_CREDIT, CREDIT + pool.max_threads - 1)
        self._more_credit = min(MORE_CREDIT, MAX_CREDIT - self._credit)
        # Umaster has that, or is about to have it: from the beginning, as it gives to who has the most credit.
        self._more = True
        self._portion = CREDIT_PORTION
        #: Who serves all that is ready by itself, if anybody: the leader, while there is no crowd.
        self._solo: Server | None = None
        self._quick = CALM
        self._audit = Audit(site, log, self._parking)
        self._waits = Waits()
        self._processor = Processor()
        self._thread_wait = pool.thread_wait
        self._given = 0
        #: When whoever looked last for what comes has found something; 0.0: somebody is looking.
        self._busy_since = 0.0
        self._sweep_at = 0.0
        #: Of a sweep that isn't over: who is to be looked at yet, until when, and the bytes that the others hold.
        self._unswept: list[Parked] = []
        self._sweep_by = 0.0
        self._held = 0
        self._leaving = False
        self._aside: Aside | None = None
        #: The same, if it has no thread of its own: then who leads gives it its turns.
        self._beside: Aside | None = None
        self._elsewhere = 0  # connections that it has
        self._looked_for_room = 0.0
        self._pass_idle_until = 0.0
        #: Without a supervisor: until when we may finish.
        self._orphaned_until = 0.0
        #: Somebody has sent us SIGTERM.
        self._asked = False
        self._left = 0.0
        self._looked_at = 0.0
        self._pid = 0
        self._control = Channel(
            control,
            Kind.CONTROL,
            Side.CONNECTOR,
            loop=self,
            log=log,
            faults=self._faults,
            peer="supervisor",
            on_message=self._from_supervisor,
            on_close=self._supervisor_gone,
        )

    def tell(self, message: Message) -> bool:
        """Say something to the supervisor before `run`."""
        return self._control.send(message)

    # ---- serving ----

    def run(self) -> None:
        """Serve until told to leave and done."""
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._forked)
        self._running = True
        aside = self._site.aside
        if aside is not None:
            aside.begin(self)
            self._crew.sites.append(aside.site)
            self._credit = min(self._credit, aside.most)
            self._more_credit = 0
            self._portion = min(CREDIT_PORTION, self._credit)
            self._aside = aside
            if aside.fd >= 0:
                self._beside = aside
                # Then only a long body takes a thread for long; all else that takes so long waits for the processor.
                self._thread_wait = max(self._thread_wait, PASS_AFTER)
                self._epoll.register(aside.fd, READ)
        signal.signal(signal.SIGTERM, self._on_term)
        threading.Thread(target=self._be_watcher, name="watcher", daemon=True).start()
        self._control.send(Ready())
        try:
            if aside is None or aside is self._beside:
                self._serve_as_one(self._crew.main)
            else:
                # It has this thread, and another one is the crew's main one.
                threading.Thread(target=self._serve_beside, name="serving", daemon=True).start()
                aside.run()
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # a child that the application has forked, and that has come back from there
        self._count()

    def _serve_beside(self) -> None:
        """What the crew's main thread does when the process's main thread is somebody else's."""
        main = self._crew.main
        main.ident = threading.get_ident()
        self._be_another(main)
        if self._aside is not None and os.getpid() == self._pid:
            self._aside.end()

    def _on_term(self, *_: object) -> None:
        """An operator's word: leave as if we were retired, which the watcher sees to. Said a second time: at once."""
        if self._asked:
            privileges.let_signal_end(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        self._asked = True

    def _end_by_term(self) -> None:
        """Let SIGTERM end the process from now on, unless the application has taken it for something of its own."""
        if signal.getsignal(signal.SIGTERM) == self._on_term:
            privileges.let_signal_end(signal.SIGTERM)

    def stop(self) -> None:
        """Let all threads come to their end."""
        self._running = False
        self._solo = None
        self._crew.end()

    def _serve_as_one(self, me: Server) -> None:
        """What each serving thread does, until it is to end: lead when it is its turn, alone or as one of a crowd."""
        while self._crew.await_turn(me):
            if self._quick >= CALM:
                me.take()
                self._solo = me if self._running else None
                self._serve_alone(me)
                me.one = None
                me.taking = False
                self._crew.hand_over(me)
                continue
            found = self._find(me)
            if found is None:
                me.taking = False
                continue
            one, event = found
            # Before anybody else leads, who would take us for idle, and a worker that leaves for done.
            me.one = one
            me.taking = False
            self._crew.hand_over(me)
            began = self.now
            self._site.turn = object()
            self._serve(me, one, one.connection.on_writable if event & WRITE else one.connection.on_readable)
            self._site.flush()
            self._quick = self._quick + 1 if time.monotonic() - began < QUICK else 0

    def _serve_alone(self, me: Server) -> None:
        """The quick path: serve all that is ready, until there is a crowd, or the main thread can do it."""
        site, home = me.site, self._site
        away = site is not home
        poll = self._epoll.poll
        parked = self._parked
        callbacks = self._callbacks
        lines = () if self._site.access is None else self._site.access.lines
        aside, beside = self._aside, self._beside
        send_lines_at = 0.0
        while self._solo is me:
            self._busy_since = 0.0
            pause = PASS_AFTER if beside is not None and beside.hurry else SWEEP_INTERVAL
            events = poll(max(0.0, send_lines_at - self.now) if lines else pause, EVENTS)
            self._busy_since = self.now = time.monotonic()
            home.turn = object()
            for fd, event in events:
                one = parked.pop(fd, None)
                if one is not None:
                    connection = one.connection
                    if aside is not None and aside.full and self._passed_on(one):
                        continue
                    me.one = one
                    if away:
                        connection.move(site)
                    want = connection.on_writable() if event & WRITE else connection.on_readable()
                    if away:
                        connection.move(home)
                    if want is one.want:
                        parked[fd] = one
                    else:
                        self._settle(me, one, want)
                elif (callback := callbacks.get(fd)) is not None:
                    with self._lock:
                        callback(event)
                    if self._fresh:
                        self._serve_fresh(me)
                elif beside is None or fd != beside.fd:
                    self._parking.ignore(fd, self._crew.served())
            if beside is not None:
                me.one = None
                beside.turn()
            if lines and (self.now >= send_lines_at or len(lines) >= BATCH):
                self._site.flush()
                send_lines_at = self.now + INTERVAL
            if self._spent >= self._portion or self._timers or self.now >= self._sweep_at:
                self._look_after(me)
            if away and self._crew.main_waits:
                self._solo = None

    def _find(self, me: Server) -> tuple[Parked, int] | None:
        """Lead: wait until something can be served, and return one. None: `me` leads no longer, or all is over."""
        while self._running and self._crew.leader is me:
            me.take()
            fresh = self._next_fresh()
            if fresh is not None:
                return fresh, READ
            if self._spent >= self._portion or self._timers or self.now >= self._sweep_at:
                self._look_after(me)
                if self._crew.leader is not me:
                    break  # that has taken a while
            self._busy_since = 0.0
            me.taking = False
            beside = self._beside
            pause = PASS_AFTER if beside is not None and beside.hurry else SWEEP_INTERVAL
            events = self._epoll.poll(pause, CROWD_EVENTS)
            me.take()
            self._busy_since = self.now = time.monotonic()
            if beside is not None:
                beside.turn()
            if not events:
                # Nobody wants anything: the crowd is over, and the main thread comes first.
                self._quick = CALM
                if self._crew.main_waits:
                    self._crew.hand_over(me)
                break
            found = None
            for fd, event in events:
                one = self._parked.pop(fd, None)
                if one is not None:
                    if self._aside is not None and self._aside.full and self._passed_on(one):
                        continue
                    found = one, event
                    break
                callback = self._callbacks.get(fd)
                if callback is not None:
                    with self._lock:
                        callback(event)
                elif beside is None or fd != beside.fd:
                    self._parking.ignore(fd, self._crew.served())
            if found is not None:
                return found
        return None

    def _passed_on(self, one: Parked) -> bool:
        """Offer `one`, which is out of `_parked`, to a sibling: what serves beside us is full. False: it can't."""
        if not one.connection.unread or not self._may_pass():
            return False
        with self._lock:
            self._offers.make(one, self._channel)
        return True

    def _next_fresh(self) -> Parked | None:
        """Return a connection that has just been given to us: its first bytes are there already."""
        try:
            return self._fresh.popleft()
        except IndexError:
            return None

    def _serve_fresh(self, me: Server) -> None:
        """Serve all of that, and see how quick we are."""
        began, count = time.monotonic(), 0
        for one in iter(self._next_fresh, None):
            self._site.turn = object()
            self._serve(me, one, one.connection.on_readable)
            count += 1
        if count:
            self._lend(time.monotonic() - began < count * QUICK)

    def _lend(self, more: bool) -> None:
        """Let umaster have MORE_CREDIT, or no longer: then it isn't given back once it is spent."""
        if more is self._more:
            return
        with self._lock:
            if more is not self._more:  # the watcher may have been here meanwhile
                self._more = more
                self._spent += self._more_credit if more else -self._more_credit

    def _serve(self, me: Server, one: Parked, turn: Callable[[], Want]) -> None:
        """Let `one`, which is out of `_parked`, have its turn in this thread."""
        me.one = one
        if me.site is not self._site:
            one.connection.move(me.site)
        want = turn()
        if me.site is not self._site:
            one.connection.move(self._site)
        self._settle(me, one, want)
        me.one = None

    def _settle(self, me: Server | None, one: Parked, want: Want) -> None:
        """Put `one` back, or close it. Without a thread that serves (`me`), no other has to make room for it."""
        new = one.want is None
        self._parking.settle(one, want)
        if want is _CLOSED:
            return
        if want is _AWAY:
            assert self._aside is not None
            self._aside.take(one)
        elif not new:
            return
        elif me is not None and self._full:
            self._make_room(me)
        if not self._wake.is_set():
            self._wake.set()

    def settle(self, one: Parked, want: Want) -> None:
        """See `Host.settle`."""
        self._settle(None, one, want)

    def give_credit(self) -> None:
        """See `Host.give_credit`."""
        if self._spent >= self._portion:
            self._give_credit(None)

    @property
    def _full(self) -> bool:
        return len(self._parked) + self._elsewhere >= self._room

    def _make_room(self, me: Server) -> None:
        """Close the connections that have been idle the longest, as many as make it worth the search. Are all in use,
        their clients are told to come again: each answer says `Connection: close` until there is room.
        """
        if self.now - self._looked_for_room < ROOM_LOOK:
            return
        self._looked_for_room = self.now
        latest = self.now - JUST_IDLE + self._site.patience.idle
        idle = [
            one
            for one in list(self._parked.values())
            if one.connection.idle and one.connection.deadline <= latest
        ]
        idle.sort(key=lambda one: one.connection.deadline)
        for one in idle[: max(1, self._room // 32)]:
            if self._parking.take(one):
                self._serve(me, one, one.connection.close)
        if not idle:
            self._part(True)

    def _part(self, soon: bool) -> None:
        """Say `Connection: close` in answers, or no longer."""
        for site in self._crew.sites:
            site.retiring = soon

    def _look_after(self, me: Server) -> None:
        """What is due between turns: credit, timers, deadlines."""
        if self._spent >= self._portion:
            self._give_credit(me)
        if self._timers:
            with self._lock:
                self._run_timers()
        if self.now >= self._sweep_at:
            self._sweep(me)

    def _give_credit(self, me: Server | None) -> None:
        """Give back what was spent, less one for each other thread that is busy, and what is too much for `Aside`.

        Without room for more connections none is given: who comes waits in umaster, and finds a sibling, maybe.
        """
        if self._full:
            if me is not None:
                self._make_room(me)
            if self._full:
                return
        mine = None if me is None else me.one
        with self._lock:
            due = self._spent - sum(one is not None for one in self._crew.served() if one is not mine)
            if self._aside is not None:
                due -= self._aside.excess(self._credit)
            if due >= self._portion and self._channel is not None and not self._leaving:
                self._channel.send(Credit(due))
                self._spent -= due

    def _sweep(self, me: Server) -> None:
        """See to those whose time is over. With thousands that takes a while, so who comes in between is served first,
        and the next turn goes on.
        """
        now, unswept = self.now, self._unswept
        if not unswept:
            unswept += self._parked.values()
            self._held, self._sweep_by = 0, now + SWEEP_WITHIN
            if self._beside is not None:
                self._beside.sweep(now)
        while True:
            part = unswept[-SWEEP_PART:]
            del unswept[-SWEEP_PART:]
            for one in part:
                if one.connection.deadline <= now and self._parking.take(one):
                    self._serve(me, one, one.connection.on_timeout)
                elif one.want is None and self._parking.take(one):
                    self._settle(me, one, Want.WRITE)  # see parking.py; it is writable: it goes on from there
                else:
                    self._held += one.connection.held
            if not unswept:
                break
            if now < self._sweep_by and self._epoll.poll(SWEEP_PAUSE, 1):
                return
        self._sweep_at = now + (LEAVING_INTERVAL if self._leaving else SWEEP_INTERVAL)
        if self._held > HELD_LIMIT:
            self._let_go(me, self._held)
        if self._site.retiring and not self._leaving and len(self._parked) < self._room * 7 // 8:
            self._part(False)
        self._site.flush()
        if self._leaving:
            self._leave_when_done(me)

    def _let_go(self, me: Server, held: int) -> None:
        """Close the connections that hold the most of the `held` bytes, until half of what may be is left."""
        closed = 0
        for one in sorted(self._parked.values(), key=lambda one: one.connection.held, reverse=True):
            if held <= HELD_LIMIT // 2:
                break
            size = one.connection.held
            if self._parking.take(one):
                self._serve(me, one, one.connection.abort)
                held -= size
                closed += 1
        self._log.warning("too much memory is held by requests that aren't whole", closed=closed)

    # ---- umaster ----

    def _attach(self, fd: int, version: int) -> None:
        if self._channel is not None:
            # What the old umaster has given us and we haven't read stays with the listener, which offers it again.
            self._channel.close()
            self._offers.retry_all()
        self._spent, self._more = 0, True
        channel = self._channel = Channel(
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd),
            Kind.WORKER,
            Side.CONNECTOR,
            loop=self,
            log=self._log,
            faults=self._faults,
            peer="umaster",
            version=version,
            on_message=self._from_umaster,
            on_close=self._umaster_gone,
        )
        # One packet at a time: Taken is said right before they are served, not while another request is.
        channel.frames_a_turn = 1
        channel.on_packet = self._take
        if self._leaving:
            channel.send(Goodbye("leaving"))
        else:
            channel.send(Credit(self._credit + self._more_credit))

    def _from_umaster(self, channel: Channel, message: Message, fd: int | None) -> None:
        if type(message) is Dispatch:
            assert fd is not None
            if not self._running:
                os.close(fd)  # unread: with our channel's end it is offered to somebody else
                return
            # The channel has checked what it is. The family is only a name here: giving it saves asking the kernel. And
            # socket.socket is a class around this one, which takes twice as long.
            host = message.client.host
            sock = socket.SocketType(_IPV6 if ":" in host else _IPV4, _STREAM, 0, fd)
            self._came.append((sock, host, message))
            return
        match message:
            case Settled(ids):
                for id_ in ids:
                    self._offers.settled(id_)
            case Refuse(id_, _):
                self._offers.refused(id_)
            case Retry(id_):
                self._offers.retry(id_)
            case Drop(id_):
                self._offers.dropped(id_)
            case Goodbye():
                pass  # its successor's channel comes from the supervisor

    def _take(self, channel: Channel) -> None:
        """Say Taken for all that came in one packet, and let them be served."""
        if not self._came:
            return
        came, self._came = self._came, []
        self._spent += len(came)
        self._given += len(came)
        if not self._wake.is_set():
            self._wake.set()
        told = channel.send_all([Taken(given.id) for *_, given in came])
        site, fresh = self._site, self._fresh
        for sock, host, (_, client, authority, mark) in came[:told]:
            if not tcp.claim(sock, mark):
                sock.close()  # it was offered anew before we got here, and is somebody else's
                continue
            sock.setblocking(False)
            connection = site.connection(sock, (host, client.port), authority, site)
            fresh.append(Parked(connection, client, authority, sock.fileno()))
        for sock, *_ in came[told:]:
            # Nobody hears that we have it: closed unread, so that it can be offered to somebody else.
            sock.close()

    def _umaster_gone(self, channel: Channel, _: str) -> None:
        if channel is self._channel:
            self._channel = None
            self._control.send(Detached())
        self._offers.retry_all()

    # ---- the supervisor ----

    def _from_supervisor(self, _: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Attach(version):
                assert fd is not None
                self._attach(fd, version)
            case Goodbye(reason):
                self._leave(self._patience(reason))
            case _:
                pass  # Spawn is for prototypes

    def _patience(self, reason: str) -> float:
        """How long (s) idle connections wait for somebody to take them."""
        return 0.0 if reason == STOP else self._site.share.grace * PASS_SHARE

    def _supervisor_gone(self, _: Channel | None = None, _reason: str = "") -> None:
        """It was killed: we finish what our clients have in hand, within `grace`; a new one makes others meanwhile."""
        if self._orphaned_until:
            return
        self._orphaned_until = time.monotonic() + self._site.share.grace
        # Who read what the application prints is gone, too; it must not fail for that.
        redirect(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
        self._leave(self._patience(REPLACED))

    def _leave(self, patience: float) -> None:
        """Take nothing more, finish what is open, and end; siblings have `patience` (s) to take idle connections."""
        self._pass_idle_until = time.monotonic() + patience
        if self._leaving:
            return
        self._leaving = True
        self._left = time.monotonic()
        self._part(True)
        if self._channel is not None:
            self._channel.send(Goodbye("leaving"))
        if self._aside is not None:
            self._aside.leave()
        self._sweep_at = 0.0

    def _leave_when_done(self, me: Server | None) -> None:
        """Give idle connections away, or close them; stop when nothing is left.

        `me`: the thread that may serve what has just come; None: it is the watcher, which may not.
        """
        now = time.monotonic()
        mine: list[Parked] = []
        with self._lock:
            # Where all threads are stuck nobody but a sibling can serve what waits, so we don't give up.
            passing = now < self._pass_idle_until or (
                me is None and self._channel is not None and self._audit.timed_out > 0
            )
            may_pass = self._may_pass()
            for one in list(self._parked.values()):
                if not one.connection.unread or not self._parking.take(one, unread=True):
                    continue
                if passing and may_pass:
                    self._offers.make(one, self._channel)
                elif passing or not one.connection.idle:
                    self._settle(None, one, _READ)
                elif me is not None:
                    mine.append(one)
                elif one.connection.quiet:
                    self._settle(None, one, one.connection.abort())
                else:
                    self._settle(None, one, _READ)
        if me is not None:
            for one in mine:
                self._serve(me, one, one.connection.close)
        if self._crew.in_hand(self._has_connections, but=me):
            return
        if not self._audit.timed_out and not self._aside_is_done():
            return
        # Who takes what umaster has given, or passes it on, has the lock; so from here on nothing comes.
        with self._lock:
            if self._crew.in_hand(self._has_connections, but=me):
                return
            if self._audit.timed_out:
                # Whoever is stuck doesn't hear of the end: the process has to end without it.
                self._end()
            if self._is_given():
                return
            self.stop()

    def _is_given(self) -> bool:
        """Whether umaster has sent something before it heard that we leave: that is served yet."""
        try:
            return self._channel is not None and bool(
                self._channel.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            )
        except OSError:
            return False

    def _has_connections(self) -> bool:
        """There are some that no thread is serving."""
        return bool(self._parked or self._offers or self._fresh or self._audit.lingering)

    def _aside_is_done(self) -> bool:
        """Nothing is served beside us, and the application has ended."""
        aside = self._aside
        return aside is None or (not aside.busy and aside.finish())

    # ---- the watcher ----

    def _be_watcher(self) -> None:
        """What the watcher's thread runs. Without it nobody would see to anything, so an error ends the process."""
        try:
            self._watch()
        except BaseException as error:  # noqa: BLE001 - whatever it was
            self._end_by(error)

    def _watch(self) -> None:
        """Sleep; say that we live; see to what busy threads can't."""
        next_beat = 0.0
        while True:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_INTERVAL
                self._count()
                with self._lock:
                    if not self._control.send(Beat()):
                        self._supervisor_gone()  # whoever leads may be too busy to hear of it
                        if now >= self._orphaned_until:
                            os._exit(1)  # our keeper would do it, unless it is gone as well
            if self._asked and not self._leaving:
                with self._lock:
                    self._control.send(Goodbye(ASKED))
                    self._leave(self._patience(RETIRE))
            if self._leaving and now - self._left >= self._site.share.grace:
                # Our supervisor's SIGTERM is meant so, and has to be heard even where no Python runs.
                self._end_by_term()
            self._wake.clear()
            if (
                self._parked
                or self._busy_since
                or self._leaving
                or self._busy_threads()
                or (self._aside is not None and self._aside.busy)
            ):
                time.sleep(self._pause())
                self._look()
            else:
                self._wake.wait(max(0.0, next_beat - time.monotonic()))

    def _pause(self) -> float:
        """How long the watcher sleeps while there is anything to see."""
        if self._crew.most == 1:
            return PASS_AFTER
        if not self._busy_since:
            return THREAD_LOOK
        return max(SHORTEST_LOOK, min(self._thread_wait, PASS_AFTER))

    def _look(self) -> None:
        now = time.monotonic()
        self._count()
        self._site.flush()
        if self._aside is not None:
            self._look_aside(self._aside, now)
        busy_since = self._busy_since
        servers = list(self._crew.servers)
        solo = self._solo
        if solo is not None and busy_since != self._looked_at:
            # It has turned meanwhile, or waits: what it was serving it serves no longer.
            solo.seen = None
            if not busy_since:
                servers = [server for server in servers if server is not solo]
        self._looked_at = busy_since
        for server in self._audit.look(now, servers):
            self._condemn(server, now)
        if not busy_since or busy_since != self._busy_since:
            self._waits.forget()
            if not busy_since:
                return
        nobody_looks = now - busy_since >= PASS_AFTER
        if self._crew.most > 1:
            self._waits.look(self._ready(), now)
            at_work = self._processor.at_work(now)
            late = self._waits.longer_than(self._thread_wait, now)
            if len(servers) < self._crew.most or self._crew.idle:
                stuck = any(
                    server.seen is not None and now - server.since >= self._thread_wait for server in servers
                )
                # What is given turns waits for nothing: with that, a turn that is long is kept from the processor.
                waits = stuck or not (at_work or self._beside is not None)
                if late and waits and self._more_threads(late):
                    return
            elif late := self._waits.longer_than(PASS_AFTER, now):
                self._help(late)
                return
        elif nobody_looks:
            self._waits.look(self._ready(), now)  # for the scoreboard: that somebody waits is stress
        if nobody_looks and self._busy_since == busy_since:
            self._help(None)

    def _look_aside(self, aside: Aside, now: float) -> None:
        """See whether the loop beside us comes round; end it, if it hasn't for request_timeout."""
        self._audit.look_aside(aside, now)
        if self._audit.stuck_aside(aside, now):
            with self._lock:
                if not self._leaving:
                    self._control.send(Goodbye(TIMED_OUT))
                    self._leave(self._patience(RETIRE))

    def _ready(self) -> dict[int, object]:
        """Return what could be served now, each with what tells its request from the next one."""
        ready: dict[int, object] = {}
        for fd, _ in self._epoll.poll(0, EVENTS):
            one = self._parked.get(fd)
            if one is not None:
                ready[fd] = one, one.connection.served
            elif fd in self._callbacks:
                ready[fd] = self._given
            elif self._beside is not None and fd == self._beside.fd:
                ready[fd] = self._busy_since  # who looks gives it a turn
        return ready

    def _more_threads(self, late: list[int]) -> bool:
        """Make a crowd, with a thread for each request in `late`, as far as there are threads to be had."""
        crew = self._crew
        count = sum(fd in self._parked for fd in late)
        if self._beside is not None:
            count += self._beside.fd in late
        room = crew.most - len(crew.servers) + crew.idle
        with self._lock:
            channel = self._channel
            if channel is not None and not channel.closed and channel.sock.fileno() in late:
                channel.receive(max(1, room - count))
        idle = crew.idle
        self._solo = None
        self._quick = 0
        self._lend(False)
        crew.depose()
        started = crew.recruit(count + len(self._fresh) - idle, self._be_another)
        self._waits.forget()
        return bool(started or idle)

    def _be_another(self, me: Server) -> None:
        """What a thread runs that is not the main one. An error ends the process, as it would there."""
        try:
            self._serve_as_one(me)
        except BaseException as error:  # noqa: BLE001 - whatever it was
            if os.getpid() == self._pid:
                self._end_by(error)
        if os.getpid() != self._pid:
            os._exit(0)

    def _end_by(self, error: BaseException) -> NoReturn:
        """End the process, because a thread of ours has met what it can't handle."""
        reason = traceback.format_exception_only(error)[-1].strip()  # also of one whose str() fails
        self._log.error("worker ended by an error", error=reason, traceback=traceback.format_exc())
        os._exit(1)

    def _help(self, late: list[int] | None) -> None:
        """All threads are busy: do for them what can't wait.

        `late` are the descriptors that have waited; None: nobody has looked for a while, all that is ready has.
        """
        busy_since = self._busy_since
        if self._beside is not None:
            self._beside.turn()  # not under our lock, which it takes under its own
        with self._lock:
            for fd, event in self._epoll.poll(0, EVENTS):
                if late is None and self._busy_since != busy_since:
                    return
                callback = self._callbacks.get(fd)
                if callback is not None:
                    if self._channel is not None and fd == self._channel.sock.fileno():
                        self._channel.receive(CREDIT)
                    else:
                        callback(event)
                    continue
                one = self._parked.get(fd)
                if one is None or not one.connection.unread or not self._may_pass():
                    continue
                if (late is None or fd in late) and self._parking.take(one, unread=True):
                    self._offers.make(one, self._channel)
            while (fresh := self._next_fresh()) is not None:
                if self._may_pass():
                    self._offers.make(fresh, self._channel)
                else:
                    self._settle(None, fresh, _READ)
            if self._timers:
                self._run_timers()
        if self._leaving:
            self._leave_when_done(None)

    def _may_pass(self) -> bool:
        return self._channel is not None and not self._offers.pausing

    def _condemn(self, server: Server, now: float) -> None:
        """A request has had its time: its client is let go, and so are we, as soon as the other ones are done."""
        if not self._audit.condemn(server, now):
            return
        with self._lock:
            if not self._leaving:
                self._control.send(Goodbye(TIMED_OUT))
                self._leave(self._patience(RETIRE))

    def _end(self) -> None:
        """End the process, whatever its threads do."""
        self._count()
        self._site.finish()
        os._exit(0)

    def _forked(self) -> None:
        """In a child that the application has forked: it is no worker, and keeps nothing of ours.

        Not a connection, whose client would wait for the child's end; not the loop, whose events it would take from us;
        and no way to answer the request a second time.
        """
        self._end_by_term()
        self._running = False
        self._solo = None
        self._lock = threading.RLock()
        self._parking.fork()
        self._crew.fork()
        self._audit.fork()
        for site in self._crew.sites:
            site.access = site.clients = None  # what workers share isn't its to write
        with contextlib.suppress(OSError):
            for one in [*self._parked.values(), *self._offers, *self._fresh]:
                one.connection.sock.close()
            for sock, *_ in self._came:
                sock.close()
            for channel in (self._control, self._channel):
                if channel is not None:
                    channel.closed = True
                    channel.sock.close()
            self._epoll.close()
            ours, dead = socket.socketpair()
            with ours, dead:
                dead.shutdown(socket.SHUT_RDWR)

                def bury(one: Parked) -> None:
                    if one.connection.sock.fileno() >= 0:
                        os.dup2(dead.fileno(), one.fd, inheritable=False)

                for served in self._crew.served():
                    if served is not None:
                        bury(served)
                if self._aside is not None:
                    self._aside.fork(bury)
        self._parked.clear()
        self._unswept.clear()
        self._offers.clear()
        self._fresh.clear()
        self._callbacks.clear()

    # ---- the scoreboard ----

    def _busy_threads(self) -> int:
        solo = self._solo
        # What it has served last stays noted while it waits.
        return self._crew.busy(but=solo) + (solo is not None and self._busy_since > 0)

    def _count(self) -> None:
        """Write our row, and sample how busy we are: called every PASS_AFTER while there is anything to do."""
        counters = [0] * 6
        errors = bytes_sent = 0
        for site in self._crew.sites:
            for digit, count in enumerate(site.stats.responses):
                counters[digit] += count
            errors += site.stats.errors
            bytes_sent += site.stats.bytes_sent
        counters[5] += self._audit.answered
        servers = list(self._crew.servers)
        last = next(
            (server.site.heads.last for server in servers[::-1] if server.one is not None),
            (None if self._aside is None else self._aside.site.heads.last) or self._site.heads.last,
        )
        busy, waiting = self._busy_threads(), len(self._waits) + len(self._fresh)
        threads, connections = len(servers), len(self._parked) + busy
        now = time.monotonic()
        at_work = float(busy)
        if self._aside is not None:
            load = self._aside.look(now)
            # A loop counts as a thread; it is busy while it has anything in hand, an open WebSocket too.
            threads += self._beside is None
            busy = min(threads, busy + (load.requests > 0))
            connections += load.connections
            self._elsewhere = load.connections
            waiting += load.waiting
            # The pool's policy asks for shares of all threads: as busy as the busier of the two sides.
            at_work = max(at_work, load.busy * self._crew.most)
            if load.waiting:
                busy = threads
        # At the end two threads may count at the same moment; a row has no room for less than nothing.
        self._busy_ms += int(at_work * max(0, int((now - self._counted) * 1000)))
        self._counted = now
        row = Row(
            requests=sum(counters),
            informational=counters[1],
            success=counters[2],
            redirect=counters[3],
            client_error=counters[4],
            server_error=counters[5],
            errors=errors,
            bytes_sent=bytes_sent + self._audit.bytes_sent,
            slow=self._audit.slow + (self._aside.slow_requests if self._aside is not None else 0),
            timed_out=self._audit.timed_out + (self._aside.timed_out if self._aside is not None else 0),
            passed=self._offers.passed,
            busy_ms=self._busy_ms,
            connections=connections,
            parked=len(self._parked),
            threads=threads,
            busy_threads=busy,
            waiting=waiting,
            state=STATE_LEAVING if self._leaving else STATE_SERVING,
            number=self._number,
            generation=self._site.share.generation,
            born=self._born,
            memory=_peak_memory() - self._memory_at_birth,
            last_host=last.host.encode("latin-1")[:HOST_SIZE] if last is not None else b"",
            last_path=last.target[:PATH_SIZE] if last is not None else b"",
        )
        self._scoreboard.write(self._slot, row)
        self._count_faults()

    def _count_faults(self) -> None:
        """Write what we know of faults of applications in other processes, if there were any."""
        cells: dict[int, int] = {}
        for site in self._crew.sites:
            for cell, count in site.stats.faults.copy().items():  # its thread adds to it
                cells[cell] = cells.get(cell, 0) + count
        if cells:
            self._scoreboard.write_cells(self._slot, self._number, cells)


def _peak_memory() -> int:
    """Return what this process has had resident at the most, in bytes; never less than before."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
