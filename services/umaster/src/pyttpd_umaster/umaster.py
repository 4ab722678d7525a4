"""umaster: frames in, frames out. It connects the router to its channels, and never sees a byte of HTTP.

What comes from where: shares and the host map from master, offers from listeners and workers, workers from their
supervisors. A channel's `owner` is the router's object for who is at its other end.
"""

from __future__ import annotations

import gc
import os
import socket
from collections import Counter, deque
from collections.abc import Iterable

from pyttpd import confine, metrics, peercred
from pyttpd.channel import GONE, Channel
from pyttpd.config.pieces import Steps, read_map, read_umaster, run
from pyttpd.config.shares import ListenerPeer, UmasterShare
from pyttpd.rendezvous import Caller
from pyttpd.roles import Channel as Directory
from pyttpd.service import Service
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    STANDING_IS_ANSWERED,
    Credit,
    Gone,
    Goodbye,
    Hello,
    Message,
    Pass,
    Retry,
    Route,
    Standing,
    Taken,
    Worker,
)
from pyttpd.wire.permits import Kind, Side

from pyttpd_umaster.router import ROUTE_WINDOW, WAIT_BUCKETS, Router, Source, Supervisor, WorkerState

#: How often (s) the ages in the queues are looked at.
SWEEP_INTERVAL = 0.25
#: Of a turn, what goes to putting another configuration into force (s): as long as a hundred connections take.
SLICE = 0.004
#: Answers that may wait for workers that offer connections and don't read: for all of a pool, at the least for each.
#: With thousands of channels, each with a full outbox, a tenant would take all our memory.
MAX_BEHIND, MIN_BEHIND = 32_768, 64
#: That a vhost has no room for another worker is said once in so long (s).
TOLD_FOR = 600.0
#: A listener hears so late (s) at the most that a connection is settled, unless there are many: it only closes its copy
#: then, and each time that it is told takes the processor from who serves.
SETTLE_WITHIN = 0.005
#: When leaving, what has been dispatched gets so long (s) to be taken; then its listeners decide.
LEAVE_TIMEOUT = 5.0


def serve(service: Service) -> None:
    """Run umaster in this process."""
    service.give_way()
    service.confine(confine.role_policy())
    Umaster(service)
    service.run()


class Umaster:
    """The role: entrances, links, and what each message does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = service.loop
        self._log = service.log
        self._budget = service.budget
        self._router = Router(service.budget)
        self._share: UmasterShare | None = None
        self._has_map = False
        self._opened = False
        self._work: deque[tuple[str, Steps[None]]] = deque()
        self._listeners: dict[str, ListenerPeer] = {}
        self._uids: dict[str, int] = {}
        self._channels: set[Channel] = set()
        self._paused: list[Channel] = []
        self._waits = 0
        self._told: dict[str, float] = {}
        self._route = service.entrance(
            Directory.ROUTE, credits=ROUTE_WINDOW, authorise=self._is_listener, on_open=self._on_listener
        )
        self._vhost = service.entrance(
            Directory.VHOST, credits=0, authorise=self._is_supervisor, on_open=self._on_supervisor
        )
        service.on_drain(self._drain)
        service.fetch_sockets(self._collect, self._no_listener)
        self._subscription = service.fetch_shares(self._on_share)
        self._settling = False
        self._loop.after_turn += (self._flush, self._resume)
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    # ---- configuration ----

    def _on_share(self, part: str, data: bytes) -> bool:
        """Begin to put a part into force, and say whether it is already. Thousands of vhosts take a while, and
        nobody who is routed meanwhile waits for that: it is done in slices.
        """
        self._work.append((part, self._put_in_force(part, data)))
        if len(self._work) > 1:
            return False
        try:
            done = self._do_some(float("inf") if not self._opened else SLICE)
        except ValueError:
            self._work.popleft()
            raise
        if not done:
            self._loop.call_later(0.0, self._go_on)
        return done

    def _put_in_force(self, part: str, data: bytes) -> Steps[None]:
        if part == "share":
            share = yield from read_umaster(data)
            uids: dict[str, int] = {}
            for peer in share.vhosts:
                uids[peer.name] = peer.uid
                self._router.add_vhost(peer)
                yield
            self._share, self._uids = share, uids
            self._listeners = {each.name: each for each in share.listeners}
            for channel in self._channels:
                if channel.peer == "listener" and channel.peer_name in self._listeners:
                    assert isinstance(channel.owner, Source)
                    channel.owner.room = self._listeners[channel.peer_name].max_connections
            self._service.log_as(share.log)
        else:
            hosts = yield from read_map(data)
            self._router.set_map(hosts)  # in one step: nobody is routed by half of it
            self._has_map = True
            # Not before: until now names may have been theirs.
            for name in self._router.others(self._uids):
                self._router.remove_vhost(name)
                yield
        if self._share is not None and self._has_map and not self._opened:
            self._opened = True
            self._service.when_sealed(self._open)

    def _do_some(self, seconds: float) -> bool:
        """Go on with the first piece of work; say whether it is done."""
        gc.disable()  # a collection would go through all that is being made, again and again
        try:
            done, _ = run(self._work[0][1], seconds)
        finally:
            gc.enable()
        if done:
            self._work.popleft()
            # What a configuration is made of lives as long as it does: no collection needs to look at it.
            gc.freeze()
        return done

    def _go_on(self) -> None:
        part = self._work[0][0]
        try:
            done = self._do_some(SLICE)
        except ValueError as error:
            self._work.popleft()
            self._subscription.refuse(str(error))
        else:
            if done:
                self._subscription.in_force(part)
        if self._work:
            self._loop.call_later(0.0, self._go_on)

    def _open(self) -> None:
        self._route.open()
        self._vhost.open()
        self._service.ready()

    def _no_listener(self, name: str, sock: socket.socket) -> None:
        self._log.error("init gave us a socket to listen on, which is not ours to have", name=name)
        sock.close()

    # ---- who may come in ----

    def _is_listener(self, caller: Caller, hello: Hello) -> bool:
        peer = self._listeners.get(hello.name)
        return hello.role == "listener" and peer is not None and caller.is_a("listener", peer.name, peer.uid)

    def _is_supervisor(self, caller: Caller, hello: Hello) -> bool:
        uid = self._uids.get(hello.name)
        return hello.role == "vhost" and uid is not None and caller.is_a("vhost", hello.name, uid)

    # ---- listeners ----

    def _on_listener(self, channel: Channel, hello: Hello) -> None:
        peer = self._listeners[hello.name]
        channel.owner = self._router.add_source(channel, hello.name, peer.max_connections)
        channel.on_message = self._metrics_offer if peer.mode == "metrics" else self._request_offer
        channel.on_close = self._listener_gone
        channel.on_lost = self._offer_lost
        self._channels.add(channel)
        self._log.info("listener is here", name=hello.name)

    def _request_offer(self, channel: Channel, message: Message, fd: int | None) -> None:
        self._offer(channel, message, fd, metrics=False)

    def _metrics_offer(self, channel: Channel, message: Message, fd: int | None) -> None:
        self._offer(channel, message, fd, metrics=True)

    def _offer(self, channel: Channel, message: Message, fd: int | None, *, metrics: bool) -> None:
        if type(message) is not Route:
            return  # Goodbye: what it has open is settled as ever; then it closes
        source = channel.owner
        assert isinstance(source, Source)
        assert fd is not None
        id_, client, authority, mark = message
        if channel.paused and self._budget.exhausted:
            self._send_back(channel, id_, fd)
            return
        self._router.route(source, id_, client, authority, fd, metrics=metrics, now=self._loop.now, mark=mark)
        if self._budget.exhausted or self._router.crowded:
            self._check_room(channel)

    def _send_back(self, channel: Channel, id_: int, fd: int) -> None:
        """What comes in a packet behind the offer that took our last descriptor is offered again, and waits then. Where
        only the queues are full it is taken: given back, it would be behind those who have come later.
        """
        os.close(fd)
        channel.send(Retry(id_))

    def _offer_lost(self, channel: Channel, message: Message) -> None:
        """We had no free descriptor for this offer: nobody's fault, so it comes again."""
        match message:
            case Route(id_):
                channel.send(Retry(id_))

    def _listener_gone(self, channel: Channel, reason: str) -> None:
        self._channels.discard(channel)
        assert isinstance(channel.owner, Source)
        if reason == GONE:
            self._router.listener_gone(channel.owner)
        else:
            self._router.source_gone(channel.owner)  # we have cut it off: it lives, and is not to be believed
        self._log.info("listener is gone", name=channel.peer_name, reason=reason)

    def _check_room(self, channel: Channel) -> None:
        """Whoever has sent us a descriptor waits if there is no room for another; what it would send stays with it,
        unharmed.
        """
        if self._budget.exhausted:
            self._router.send_assigned()  # which makes room for as many
        if not channel.paused and not self._has_room(channel):
            channel.pause()
            self._paused.append(channel)
            self._waits += 1

    def _has_room(self, channel: Channel) -> bool:
        """Whether the next descriptor of `channel` may come: there is a free one, and for a listener's a place to wait.

        A worker and a supervisor are heard when queues are full: what they say makes room in these, and what a worker
        passes on never queues.
        """
        return not (self._budget.exhausted or (channel.peer == "listener" and self._router.crowded))

    def _resume(self) -> None:
        """Whoever waits may go on, if there is room."""
        if self._paused and not self._budget.exhausted:
            paused, self._paused = self._paused, []
            for channel in paused:
                if self._has_room(channel):
                    channel.resume()
                else:
                    self._paused.append(channel)

    # ---- supervisors ----

    def _on_supervisor(self, channel: Channel, hello: Hello) -> None:
        channel.on_message = self._from_supervisor
        channel.on_close = self._supervisor_gone
        try:
            channel.owner = self._router.add_supervisor(channel, hello.name)
        except RemoteProtocolError as error:
            channel.on_close = lambda _channel, _reason: None
            channel.fault(error.reason, str(error))
            return
        self._channels.add(channel)
        self._log.info("vhost is here", name=hello.name)

    def _from_supervisor(self, channel: Channel, message: Message, fd: int | None) -> None:
        supervisor = channel.owner
        assert isinstance(supervisor, Supervisor)
        match message:
            case Worker(number, work):
                assert fd is not None
                self._on_worker(supervisor, number, work, fd)
                self._check_room(channel)
            case Gone(number):
                self._router.buried(supervisor, number)
            case Standing(state):
                self._on_standing(supervisor, failing=state == "failing")
            case Goodbye():
                pass  # its workers say goodbye for themselves

    def _on_standing(self, supervisor: Supervisor, *, failing: bool) -> None:
        # No line in the log: a tenant could say it without end. Its supervisor has said why in its own.
        self._router.standing(supervisor, failing=failing)
        own = supervisor.channel
        assert isinstance(own, Channel)
        # After our Goodbye it is our successor's to say.
        if not failing and own.version >= STANDING_IS_ANSWERED and not self._service.draining:
            # Its predecessor's workers leave when it has heard that: what they are still to have goes first.
            self._router.send_assigned()
            own.send(Standing("open"))

    def _supervisor_gone(self, channel: Channel, reason: str) -> None:
        self._channels.discard(channel)
        assert isinstance(channel.owner, Supervisor)
        self._router.supervisor_gone(channel.owner)
        self._log.info("vhost is gone", name=channel.peer_name, reason=reason)

    def _on_worker(self, supervisor: Supervisor, number: int, work: str, fd: int) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
        try:
            self._router.may_add_worker(supervisor, number)
            own = supervisor.channel
            assert isinstance(own, Channel)
            if peercred.peer(sock).uid != peercred.peer(own.sock).uid:
                raise RemoteProtocolError("descriptors", "a worker's channel that somebody else has made")
        except (RemoteProtocolError, OSError) as error:
            sock.close()
            if isinstance(error, OSError):
                raise RemoteProtocolError("descriptors", str(error)) from None
            raise
        if reason := self._router.no_room(supervisor, work):
            # Its other workers serve on. It hears of it by the end of the channel, and tries again after a while.
            self._service.faults.add("vhost", "no-room")
            if self._loop.now - self._told.get(supervisor.vhost, -TOLD_FOR) >= TOLD_FOR:
                self._told[supervisor.vhost] = self._loop.now
                self._log.warning(
                    "no room for another worker: raise umaster's limit (ulimit -n), or lower max_workers",
                    vhost=supervisor.vhost,
                    reason=reason,
                )
            sock.close()
            return
        channel = Channel(
            sock,
            Kind.WORKER,
            Side.BINDER,
            loop=self._loop,
            log=self._log,
            faults=self._service.faults,
            peer="worker",
            peer_name=f"{supervisor.vhost}/{number}",
            version=own.version,
            on_message=self._from_worker,
            on_close=self._worker_gone,
        )
        self._service.budget.take()
        channel.budget = self._service.budget
        worker = channel.owner = self._router.add_worker(supervisor, channel, number, work)
        channel.on_writable = lambda _: self._router.credit(worker, 0, self._loop.now)
        channel.on_lost = lambda _channel, message: self._pass_lost(worker, message)
        self._channels.add(channel)

    # ---- workers ----

    def _from_worker(self, channel: Channel, message: Message, fd: int | None) -> None:
        worker = channel.owner
        assert isinstance(worker, WorkerState)
        match message:
            case Taken():
                self._router.taken(worker, message.id, self._loop.now)
            case Credit(0):
                raise RemoteProtocolError("bad-field", "a credit of nothing")  # could be said without end
            case Credit(more):
                self._router.credit(worker, more, self._loop.now)
            case Pass(id_, client, authority, mark):
                assert fd is not None
                if channel.backlog > max(MIN_BEHIND, MAX_BEHIND // max(1, len(worker.pool.workers))):
                    os.close(fd)
                    raise RemoteProtocolError("does-not-read", f"{channel.backlog} answers wait")
                if channel.paused and self._budget.exhausted:
                    self._send_back(channel, id_, fd)
                    return
                self._router.pass_on(worker, id_, client, authority, fd, self._loop.now, mark)
                self._check_room(channel)
            case Goodbye():
                self._router.leave(worker)

    def _pass_lost(self, worker: WorkerState, message: Message) -> None:
        match message:
            case Pass(id_):
                worker.channel.send(Retry(id_))

    def _worker_gone(self, channel: Channel, _: str) -> None:
        self._channels.discard(channel)
        assert isinstance(channel.owner, WorkerState)
        self._router.worker_gone(channel.owner)

    # ---- time ----

    def _flush(self) -> None:
        if self._router.flush(hold=not self._service.draining) and not self._settling:
            self._settling = True
            self._loop.call_later(SETTLE_WITHIN, self._settle)

    def _settle(self) -> None:
        self._settling = False
        self._router.flush()

    def _sweep(self) -> None:
        for worker in self._router.sweep(self._loop.now):
            self._log.warning("worker takes nothing", vhost=worker.supervisor.vhost, worker=worker.number)
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _drain(self) -> None:
        """Let nobody in, give the queues back, and leave when nothing travels any more."""
        self._route.close()
        self._vhost.close()
        self._router.send_assigned()  # nothing may be dispatched after Goodbye
        self._router.give_back()  # ... whoever goes while it is said; they hear of it at the end of this turn
        for channel in list(self._channels):
            channel.send(Goodbye("leaving"))
        self._loop.after_turn.append(self._leave_when_empty)
        self._loop.call_later(LEAVE_TIMEOUT, self._service.leave)

    def _leave_when_empty(self) -> None:
        if not self._router.travelling:
            self._service.leave()

    # ---- metrics ----

    def _collect(self) -> Iterable[metrics.Metric]:
        yield from self._service.about()
        gauge, counter = metrics.GaugeMetricFamily, metrics.CounterMetricFamily
        depth = gauge("pyttpd_umaster_queue_depth", "Connections that wait for a worker.", labels=["vhost"])
        oldest = gauge(
            "pyttpd_umaster_queue_age_seconds", "How long the oldest of them has waited.", labels=["vhost"]
        )
        credit = gauge(
            "pyttpd_umaster_credits", "Connections that workers can take at once.", labels=["vhost"]
        )
        failing = gauge(
            "pyttpd_umaster_failing",
            "1 while the vhost's application does not run and its clients get 503 at once.",
            labels=["vhost"],
        )
        workers = gauge("pyttpd_umaster_workers", "Workers that have registered.", labels=["vhost"])
        handovers = gauge(
            "pyttpd_umaster_handovers_open", "Connections given and not yet taken.", labels=["vhost"]
        )
        dispatched = counter("pyttpd_umaster_dispatched", "Connections given to workers.", labels=["vhost"])
        taken = counter("pyttpd_umaster_taken", "Connections that workers have taken.", labels=["vhost"])
        refusals = counter("pyttpd_umaster_refusals", "Connections refused.", labels=["vhost", "reason"])
        wait = metrics.HistogramMetricFamily(
            "pyttpd_umaster_queue_wait_seconds", "From the offer to the worker.", labels=["vhost"]
        )
        now = self._loop.now
        for name, pool in self._router.by_vhost():
            depth.add_metric([name], len(pool.queue))
            oldest.add_metric([name], now - pool.queue[0].since if pool.queue else 0.0)
            credit.add_metric([name], pool.credits)
            failing.add_metric([name], int(pool.failing))
            workers.add_metric([name], len(pool.workers))
            handovers.add_metric([name], pool.handovers)
            dispatched.add_metric([name], pool.dispatched)
            taken.add_metric([name], pool.taken)
            for reason, count in pool.refusals.items():
                refusals.add_metric([name, reason], count)
            wait.add_metric([name], _cumulative(pool.wait_counts), pool.wait_sum)
        refusals.add_metric(["", "no-vhost"], self._router.unnamed_refusals)
        yield from (depth, oldest, credit, failing, workers, handovers, dispatched, taken, refusals, wait)
        here = Counter(channel.peer_name for channel in self._channels if isinstance(channel.owner, Source))
        listeners = gauge(
            "pyttpd_umaster_listeners", "Channels of the listener: 0 when it has left.", labels=["listener"]
        )
        for name in self._listeners:
            listeners.add_metric([name], here[name])
        yield listeners
        yield counter(
            "pyttpd_umaster_waits",
            "Times that who offers connections had to wait for free descriptors.",
            self._waits,
        )
        yield gauge(
            "pyttpd_umaster_generation",
            "Generation of the configuration in force.",
            self._share.generation if self._share else 0,
        )


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, WAIT_BUCKETS), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
