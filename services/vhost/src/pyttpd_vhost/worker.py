"""A worker: serves connections that umaster gives it, one request at a time.

Theory of operation. The *main thread* turns the loop: epoll, then for each ready connection as many requests
as its bytes allow. Between turns connections are parked in epoll and in `_parked`; who takes one out of that
dict (dict.pop is atomic) is the only one who may touch it.

The *watcher thread* sleeps nearly all the time. It says that we are alive, keeps our row of the scoreboard,
and, when the main thread has been in the application for longer than PASS_AFTER, does what that can't: it
takes what umaster gives us meanwhile and passes it, and every parked connection that has become readable,
unread to a sibling that is free (DESIGN section 3, "No waiting behind a busy sibling"). `_lock` is held by
whoever uses the channel.

    given (Dispatch) ── Taken ──> served at once ──> parked <──────── Refuse, Retry ──┐
                                      │                 ├── readable while we are busy, or retiring: Pass
                                      └── closed        └── readable ──> served        └── Settled ──> a sibling's

Credit is what the worker can take: each connection given uses one up, each that has been served (or parked)
gives it back.

In step with: wire/permits.py (Kind.WORKER), pyttpd_umaster.router.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING

from pyttpd import tcp
from pyttpd.channel import Channel, Faults
from pyttpd.log import Log
from pyttpd.loop import READ, RESERVE, WRITE, Loop, soft_descriptor_limit
from pyttpd.wire.messages import (
    Attach,
    Beat,
    Client,
    Credit,
    Detached,
    Dispatch,
    Drop,
    Goodbye,
    Message,
    Pass,
    Ready,
    Refuse,
    Retry,
    Settled,
    Taken,
)
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost.http.connection import Connection, Want
from pyttpd_vhost.scoreboard import (
    HOST_SIZE,
    PATH_SIZE,
    STATE_LEAVING,
    STATE_SERVING,
    Row,
    Scoreboard,
)

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

#: Connections that umaster may give us before we have looked at the first: hides the way there and back.
CREDIT = 8
#: Credit is given back in portions, as long as umaster has enough of it left for us.
CREDIT_PORTION = 4
BEAT_INTERVAL = 1.0
#: When the main thread has been busy for so long (s), others' connections are passed on ...
PASS_AFTER = 0.05
#: ... unless no sibling was free a moment ago.
PASS_PAUSE = 0.25
SWEEP_INTERVAL = 0.5
#: A retiring worker waits so long (s) for siblings to take its idle connections.
PASS_TIMEOUT = 2.0

_EVENTS = {Want.READ: READ, Want.WRITE: WRITE}


class Parked:
    """A connection of ours with what leads back to it. `consumed` is set while it is offered to a sibling."""

    __slots__ = ("authority", "client", "connection", "consumed", "fd", "want")

    def __init__(self, connection: Connection, client: Client, authority: str, fd: int) -> None:
        self.connection = connection
        self.client = client
        self.authority = authority
        self.fd = fd
        self.want = Want.READ
        self.consumed = 0


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
        self._site = site
        self._scoreboard = scoreboard
        self._slot = slot
        self._number = number
        self._counted = time.monotonic()
        self._born = int(time.time() * 1000)
        self._passed = 0
        self._busy_ms = 0
        self._log = log
        self._faults = Faults()
        self._parked: dict[int, Parked] = {}
        self._offered: dict[int, Parked] = {}
        self._fresh: list[Parked] = []
        self._next_id = 0
        self._spent = 0
        # Connections that we may have: what the application opens comes out of the same limit.
        self._room = max(1, (soft_descriptor_limit() - RESERVE) * 3 // 4 - CREDIT)
        self._channel: Channel | None = None
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._busy_since = 0.0
        self._pass_pause_until = 0.0
        self._leaving = False
        self._pass_idle_until = 0.0
        self._ended = False
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

    # ---- the main thread ----

    def run(self) -> None:
        """Serve until told to leave and done."""
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()
        self._control.send(Ready())
        self._running = True
        self.call_later(SWEEP_INTERVAL, self._sweep)
        poll = self._epoll.poll
        parked = self._parked
        callbacks = self._callbacks
        while self._running:
            self._busy_since = 0.0
            events = poll(self._wait(), 256)
            self._busy_since = self.now = time.monotonic()
            for fd, event in events:
                one = parked.pop(fd, None)
                if one is not None:
                    connection = one.connection
                    want = connection.on_writable() if event & WRITE else connection.on_readable()
                    if want is one.want:
                        parked[fd] = one
                    else:
                        self._settle(one, want)
                elif (callback := callbacks.get(fd)) is not None:
                    with self._lock:
                        callback(event)
                        # Ours from here on: the watcher takes what comes while we serve these.
                        fresh, self._fresh = self._fresh, []
                    for fresh_one in fresh:
                        self._begin(fresh_one)
            if self._spent >= CREDIT_PORTION:
                self._give_credit()
            if self._timers:
                self._run_timers()
        self._count()

    def _settle(self, one: Parked, want: Want) -> None:
        """Wait for something else on `one`, which is out of `_parked`, or close it."""
        if want is Want.CLOSED:
            self._close(one)
            return
        if want is not one.want:
            one.want = want
            self._epoll.modify(one.fd, _EVENTS[want])
        self._parked[one.fd] = one

    def _begin(self, one: Parked) -> None:
        """Serve a connection that has just been given to us: its first bytes are there already."""
        self._spent += 1
        want = one.connection.on_readable()
        if want is Want.CLOSED:
            one.connection.sock.close()
            return
        self._park(one, want)

    def _park(self, one: Parked, want: Want) -> None:
        one.want = want
        self._parked[one.fd] = one
        self._epoll.register(one.fd, _EVENTS[want])
        if len(self._parked) >= self._room:
            self._make_room()
        if not self._wake.is_set():
            self._wake.set()

    def _make_room(self) -> None:
        """Close the connections that have been idle the longest, as many as make it worth the search."""
        idle = [
            (one.connection.deadline, fd) for fd, one in list(self._parked.items()) if one.connection.idle
        ]
        idle.sort()
        for _, fd in idle[: max(1, self._room // 32)]:
            one = self._parked.pop(fd, None)
            if one is not None:
                self._settle(one, one.connection.close())

    def _close(self, one: Parked) -> None:
        # Out of epoll first: while the listener still has its copy, close() alone would leave it registered (epoll(7)).
        self._epoll.unregister(one.fd)
        one.connection.sock.close()

    def _give_credit(self) -> None:
        with self._lock:
            if self._channel is not None and not self._leaving:
                self._channel.send(Credit(self._spent))
            self._spent = 0

    def _sweep(self) -> None:
        now = self.now
        for fd, one in list(self._parked.items()):
            if one.connection.deadline <= now and self._parked.pop(fd, None) is not None:
                self._settle(one, one.connection.on_timeout())
        if self._leaving:
            self._leave_when_done()
        self.call_later(SWEEP_INTERVAL if not self._leaving else 0.05, self._sweep)

    # ---- umaster ----

    def _attach(self, fd: int) -> None:
        if self._channel is not None:
            # What the old umaster has given us and we haven't read stays with the listener, which offers it again.
            self._channel.close()
            self._take_all_back()
        self._spent = 0
        channel = self._channel = Channel(
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd),
            Kind.WORKER,
            Side.CONNECTOR,
            loop=self,
            log=self._log,
            faults=self._faults,
            peer="umaster",
            on_message=self._from_umaster,
            on_close=self._umaster_gone,
        )
        # One at a time: Taken is said right before the first byte is read, not while another request is being served.
        channel.frames_a_turn = 1
        if self._leaving:
            channel.send(Goodbye("leaving"))
        else:
            channel.send(Credit(CREDIT))

    def _from_umaster(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Dispatch(id_, client, authority):
                assert fd is not None
                # The channel has checked what it is. The family is only a name here: giving it saves asking the kernel.
                family = socket.AF_INET6 if ":" in client.host else socket.AF_INET
                sock = socket.socket(family, socket.SOCK_STREAM, 0, fileno=fd)
                if not channel.send(Taken(id_)):
                    # Nobody hears that we have it: closed unread, so that it can be offered to somebody else.
                    sock.close()
                    return
                sock.setblocking(False)
                self._fresh.append(
                    Parked(
                        Connection(sock, (client.host, client.port), authority, self._site),
                        client,
                        authority,
                        fd,
                    )
                )
            case Settled(ids):
                for id_ in ids:
                    one = self._offered.pop(id_, None)
                    if one is not None:
                        one.connection.detach().close()
                        self._passed += 1
            case Refuse(id_, _):
                self._pass_pause_until = time.monotonic() + PASS_PAUSE
                self._take_back(id_, sure=True)
            case Retry(id_):
                self._take_back(id_, sure=False)
            case Drop(id_):
                one = self._offered.pop(id_, None)
                if one is not None:
                    one.connection.detach().close()
            case Goodbye():
                pass  # its successor's channel comes from the supervisor

    def _umaster_gone(self, channel: Channel, _: str) -> None:
        if channel is self._channel:
            self._channel = None
            self._control.send(Detached())
        self._take_all_back()

    def _take_all_back(self) -> None:
        for id_ in list(self._offered):
            self._take_back(id_, sure=False)

    # ---- passing on ----

    def _pass(self, one: Parked) -> None:
        """Offer `one`, which is idle and out of `_parked`, to a sibling. Under the lock."""
        self._epoll.unregister(one.fd)
        self._next_id += 1
        try:
            one.consumed = tcp.consumed(one.connection.sock)
        except OSError:
            one.connection.sock.close()
            return
        one.connection.uncount()  # whoever takes it counts it
        self._offered[self._next_id] = one
        if self._channel is None or not self._channel.send(
            Pass(self._next_id, one.client, one.authority), one.fd
        ):
            self._take_back(self._next_id, sure=True)

    def _take_back(self, id_: int, *, sure: bool) -> None:
        """No sibling has it. Unless that is sure, only take it back if nobody has read from it since."""
        one = self._offered.pop(id_, None)
        if one is None:
            return
        if not sure:
            try:
                sure = tcp.consumed(one.connection.sock) == one.consumed
            except OSError:
                pass
        if sure:
            one.connection.count()
            self._park(one, Want.READ)
        else:
            one.connection.detach().close()

    # ---- the supervisor ----

    def _from_supervisor(self, _: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Attach():
                assert fd is not None
                self._attach(fd)
            case Goodbye(reason):
                self._leave(retire=reason == "retire")
            case _:
                pass  # Spawn is for prototypes

    def _supervisor_gone(self, _: Channel, _reason: str) -> None:
        self._leave(retire=False)

    def _leave(self, *, retire: bool) -> None:
        """Take nothing more, finish what is open, and end. Retiring, idle connections are given to siblings first."""
        if self._leaving:
            return
        self._leaving = True
        self._site.retiring = True
        self._pass_idle_until = time.monotonic() + (PASS_TIMEOUT if retire else 0.0)
        if self._channel is not None:
            self._channel.send(Goodbye("leaving"))
        self.call_later(0.0, self._leave_when_done)

    def _leave_when_done(self) -> None:
        """Give idle connections away, or close them; stop when nothing is left."""
        now = time.monotonic()
        with self._lock:
            passing = now < self._pass_idle_until and self._channel is not None
            for fd, one in list(self._parked.items()):
                if not one.connection.idle or self._parked.pop(fd, None) is None:
                    continue
                if passing and now >= self._pass_pause_until:
                    self._pass(one)
                elif passing:
                    self._parked[fd] = one
                else:
                    self._settle(one, one.connection.close())
            if not self._parked and not self._offered and not self._fresh:
                self.stop()

    # ---- the watcher ----

    def _watch(self) -> None:
        """Sleep; say that we live; help when the main thread is busy."""
        next_beat = 0.0
        while True:
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_INTERVAL
                self._count()
                with self._lock:
                    if not self._control.send(Beat()):
                        os._exit(1)  # without a supervisor nobody would end us
            if self._parked or self._busy_since:
                time.sleep(PASS_AFTER)
                self._count()
                busy_since = self._busy_since
                if busy_since and time.monotonic() - busy_since >= PASS_AFTER:
                    self._help(busy_since)
            else:
                self._wake.clear()
                self._wake.wait(max(0.0, next_beat - time.monotonic()))

    def _help(self, busy_since: float) -> None:
        """The main thread has been in the application since `busy_since`: do for it what can't wait."""
        with self._lock:
            if self._channel is not None and not self._channel.closed:
                self._channel.receive(1)
                while self._fresh:
                    one = self._fresh.pop()
                    one.want = Want.READ
                    self._spent += 1
                    self._epoll.register(one.fd, READ)
                    if self._leaving or time.monotonic() < self._pass_pause_until:
                        self._parked[one.fd] = one
                    else:
                        self._pass(one)
            if self._channel is None or self._leaving or time.monotonic() < self._pass_pause_until:
                return
            for fd, _ in self._epoll.poll(0, 64):
                if self._busy_since != busy_since:
                    return
                one_or_none = self._parked.get(fd)
                if one_or_none is None or not one_or_none.connection.idle:
                    continue
                taken = self._parked.pop(fd, None)
                if taken is not None:
                    self._pass(taken)

    def _count(self) -> None:
        """Write our row, and sample how busy we are: called every PASS_AFTER while there is anything to do."""
        stats = self._site.stats
        last = self._site.heads.last
        busy = int(bool(self._busy_since))
        now = time.monotonic()
        self._busy_ms += busy * int((now - self._counted) * 1000)
        self._counted = now
        _, informational, success, redirect, client_error, server_error = stats.responses
        row = Row(
            requests=stats.requests,
            informational=informational,
            success=success,
            redirect=redirect,
            client_error=client_error,
            server_error=server_error,
            errors=stats.errors,
            bytes_sent=stats.bytes_sent,
            passed=self._passed,
            busy_ms=self._busy_ms,
            connections=len(self._parked) + busy,
            parked=len(self._parked),
            threads=1,
            busy_threads=busy,
            state=STATE_LEAVING if self._leaving else STATE_SERVING,
            number=self._number,
            generation=self._site.share.generation,
            born=self._born,
            memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            last_host=last.host.encode("latin-1")[:HOST_SIZE] if last is not None else b"",
            last_path=last.target[:PATH_SIZE] if last is not None else b"",
        )
        self._scoreboard.write(self._slot, row)
