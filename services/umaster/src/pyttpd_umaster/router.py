"""Who gets which connection: pools, credits, queues, quotas. The heart of umaster, without a socket of its own.

Theory of operation. A connection comes in as an *offer* from a source: a listener (ROUTE) or a worker that
has no use for it now (PASS). The source keeps a copy of the descriptor until it hears Settled, Refuse, Retry
or Drop; exactly one of these ends each offer:

    offer ── no such name ─────────────────────────────> Refuse 421 (404 on the metrics listener)
      │
      ├── a worker has credit, handovers below quota ──> Dispatch ── Taken ──────────────> Settled
      │                                                     ├── the worker is gone ──────> Retry
      │                                                     └── nobody can prove that ───> Drop
      ├── its supervisor has said that it is failing ──> Refuse 503
      └── otherwise queue ── full, or over its share ──> Refuse 503
                ├── too old, or failing by now ────────> Refuse 503
                └── Demand to its supervisor, which may have no worker yet

One *pool* is one vhost's workers for one kind of work (its requests, or its metrics): no pool waits for
another's workers, and what all queues together may hold is shared out fairly (`Router._make_room`). What is short then
is what they have in common, descriptors of ours and of the listeners'. Those that keep their clients waiting share a
part of it; the longest of their queues gives way. A pool that is *prompt* is refused nothing for it: its queue is gone
in a moment, and until then the listeners wait (`Router.crowded`), and behind them clients, in the kernel's queue.

A vhost that is reloaded, or whose supervisor is replaced, has two supervisors for a while. From the moment on when the
newer one says that it is open, only its workers are given connections (`Router._choose`): nobody meets the old code any
more. If all of them are gone, it is the older ones' turn again.

A listener that dies leaves its queued offers to us: nobody else has these connections any more, so they are served as
ever (*orphans*), and only their Refuse has nobody to go to. Whether it has died can't be told: one that lives, and only
lost its channel, offers them again. Then what is still here is its own again, known by the connection's cookie. What a
worker has been sent meanwhile counts no longer: by its mark the worker sees that it was offered anew (pyttpd.tcp).

What a turn dispatches to a worker, and what it has to say to each source, goes in few packets at the end of the turn
(`flush`). Until then a dispatched offer is *assigned*: it has used up credit, and we still have its descriptor.
Whatever takes its worker or its source away before then sends or takes back what is assigned first.

Between pools nothing is shared but this process's time and descriptors. The caller gives the descriptor with the offer;
the pool closes it when the offer ends, or has been sent to a worker.

In step with: ARCHITECTURE.md (who holds which descriptor), tests/test_router.py.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyttpd import tcp
from pyttpd.config.shares import HostMap, UmasterShare, VhostPeer
from pyttpd.loop import Budget
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    MAX_BATCH,
    Client,
    Demand,
    Dispatch,
    Drop,
    Message,
    Refuse,
    Retry,
    Settled,
    Stuck,
)

#: More credit than this nobody needs: the kernel would have to hold so many descriptors for one worker.
MAX_CREDIT = 64
#: A worker that has not taken what it was given for so long (s) is stopped or stuck; its supervisor is told.
TAKE_TIMEOUT = 5.0
#: A supervisor that has not buried such a worker after so long (s) more is no help: the connections are dropped.
BURY_TIMEOUT = 10.0
#: Workers that one supervisor may announce, and supervisors (an old one and its successor) a vhost may have.
MAX_WORKERS = 1024
MAX_SUPERVISORS = 4
#: Open offers of one listener; it is told in Welcome. A listener's default max_connections: one that waits because its
#: window is full does so whomever its next connection is for.
ROUTE_WINDOW = 16384
#: Of the descriptors that channels leave free, and of what a listener may have open, the queues of tenants that aren't
#: prompt get at most this share: whatever they do, the rest is for others. (The listener's stress begins above it.)
SLOW_SHARE = 5 / 8
#: A tenant is prompt whose clients wait less than this (s). So long it may stand in others' way when it no longer is.
PROMPT = 1.0
#: All queues together may have this share of the descriptors that channels leave free: some are for new channels.
QUEUE_SHARE = 7 / 8
#: Connections given to workers and not taken yet, of which each is a descriptor in flight (unix(7), ETOOMANYREFS).
MAX_TRAVELLING = 4096
#: When half of what there is is used up (descriptors; descriptors in flight, which the kernel counts per uid), no vhost
#: gets more than this share of the whole, or than MIN_SHARE: one that takes all it can get doesn't keep it from others.
VHOST_SHARE = 1 / 16
MIN_SHARE = 4

WAIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class Peer(Protocol):
    """What the router needs of a channel."""

    closed: bool

    def send(self, message: Message, fd: int | None = None) -> bool: ...
    def send_all(self, messages: Sequence[Message], fds: Sequence[int] | None = None) -> int: ...
    def close(self) -> None: ...
    def fault(self, reason: str, detail: str) -> None: ...


class Nobody:
    """The channel of a source that is gone."""

    closed = True

    def send(self, message: Message, fd: int | None = None) -> bool:
        return False

    def send_all(self, messages: Sequence[Message], fds: Sequence[int] | None = None) -> int:
        return 0

    def close(self) -> None:
        """There is nothing to close."""

    def fault(self, reason: str, detail: str) -> None:
        """There is nobody to blame."""


class Source:
    """Who has offered connections: a listener's or a worker's channel. `open` is what has not ended, by its id.

    `settled` and `answers` are what it is to hear at the end of this turn (`Router.flush`), of `settled` also later, as
    long as there are fewer than `batch`; `room` is how many it may have open before it lets nobody in any more;
    `queues`: what it offers may wait for a worker.
    """

    __slots__ = ("answers", "channel", "name", "open", "queues", "room", "settled")

    def __init__(self, channel: Peer, name: str, room: int = ROUTE_WINDOW, *, queues: bool = True) -> None:
        self.channel = channel
        self.name = name
        self.room = min(room, ROUTE_WINDOW)
        self.queues = queues
        self.open: dict[int, Offer] = {}
        self.settled: list[int] = []
        self.answers: list[Message] = []

    @property
    def batch(self) -> int:
        """So many that are settled it hears of at once. A worker waits for each; and a listener that may have few
        connections lets nobody in meanwhile.
        """
        return min(MAX_BATCH, self.room // 16) if self.queues else 1

    @property
    def slow_bound(self) -> int:
        """How many of what it has open may wait for tenants that aren't prompt."""
        return max(1, int(self.room * SLOW_SHARE))


@dataclass(slots=True, eq=False)
class Offer:
    """A connection on its way. `fd` is ours until a worker has been sent it, -1 from then on. `mark`: see Route."""

    source: Source
    source_id: int
    fd: int
    client: Client
    authority: str
    since: float
    mark: int


@dataclass(slots=True, eq=False)
class WorkerState:
    """A worker's channel. `given` is what it has been dispatched and has not taken, by our id; `since` its
    first one's time.

    `blocked`: the kernel had no room for the last one; its credit is kept until there may be room again.
    """

    channel: Peer
    number: int
    pool: Pool
    supervisor: Supervisor
    source: Source
    credit: int = 0
    given: dict[int, Offer] = field(default_factory=dict)
    since: float = 0.0
    stuck_at: float = 0.0
    leaving: bool = False
    blocked: bool = False
    listed_at: int = -1


@dataclass(slots=True, eq=False)
class Supervisor:
    """A vhost's supervisor: its channel, the workers that it has announced, and whether they can't be had at all."""

    channel: Peer
    vhost: str
    number: int
    failing: bool = False
    opened: bool = False
    workers: dict[int, WorkerState] = field(default_factory=dict)


class Pool:
    """The workers of one vhost for one kind of work, and the queue in front of them."""

    def __init__(self, peer: VhostPeer, work: str) -> None:
        self.peer = peer
        self.work = work
        self.queue: deque[Offer] = deque()
        self.workers: set[WorkerState] = set()
        self.handovers = 0
        self.dispatched = 0
        self.taken = 0
        self.refusals: dict[str, int] = {}
        # failing: all supervisors of the vhost say so; who comes is told at once. told: the last Demand was above 0.
        self.failing = False
        self.told = False
        # How long (s) the last one has waited that has left the queue, or has never been in it.
        self.wait = float("inf")
        # The number of the newest supervisor that has opened and has workers: none below it is given anything.
        self.newest = 0
        self.wait_sum = 0.0
        self.wait_counts = [0] * (len(WAIT_BUCKETS) + 1)
        # Workers by credit: shelf n holds those that can take n more. The fullest shelf is the idlest worker.
        self._shelves: dict[int, dict[WorkerState, None]] = {}
        self._highest = 0

    @property
    def credits(self) -> int:
        return sum(worker.credit for worker in self.workers)

    def shelve(self, worker: WorkerState) -> None:
        """Put `worker` where its credit belongs; nowhere if it can't be given anything."""
        at = worker.listed_at
        if at >= 0:
            self._shelves[at].pop(worker, None)
        passed_over = worker.supervisor.number < self.newest
        if passed_over or worker.leaving or worker.stuck_at or worker.blocked or worker.credit == 0:
            worker.listed_at = -1
            return
        worker.listed_at = worker.credit
        self._shelves.setdefault(worker.credit, {})[worker] = None
        self._highest = max(self._highest, worker.credit)

    def idlest(self, but: Source) -> WorkerState | None:
        """Return the worker with the most credit that isn't the one who offers, or None; equals take turns."""
        while self._highest and not self._shelves.get(self._highest):
            self._highest -= 1
        for level in range(self._highest, 0, -1):
            for worker in self._shelves.get(level, ()):
                if worker.source is not but:
                    return worker
        return None

    def prompt(self, now: float) -> bool:
        """Say whether clients are served soon. Who has never served anybody isn't prompt."""
        return self.wait < PROMPT and not (self.queue and now - self.queue[0].since >= PROMPT)

    def waited(self, seconds: float) -> None:
        self.wait_sum += seconds
        for index, bound in enumerate(WAIT_BUCKETS):
            if seconds <= bound:
                self.wait_counts[index] += 1
                return
        self.wait_counts[-1] += 1

    def refused(self, reason: str) -> None:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


class Router:
    """All pools, and what happens to an offer."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._map = HostMap(1, {}, {}, None)
        self.pools: dict[tuple[str, str], Pool] = {}
        self.supervisors: dict[str, set[Supervisor]] = {}
        self.unnamed_refusals = 0
        self._queued = 0
        self._queues: set[Pool] = set()
        # Workers that haven't taken all that they were given.
        self._untaken: set[WorkerState] = set()
        self._blocked: set[WorkerState] = set()
        self._leaving = False
        #: The latest time that we were told.
        self._now = 0.0
        self._next_id = 0
        self._next_supervisor = 0
        self._travelling = 0
        self._unsent: set[Source] = set()
        # What this turn has given to each worker, by our id.
        self._assigned: dict[WorkerState, dict[int, Offer]] = {}
        self._sources: set[Source] = set()
        # Whose the orphans are, by their cookies.
        self._orphaned = Source(Nobody(), "")
        self._demanding: set[Pool] = set()
        self._to_tell: dict[Supervisor, Demand] = {}

    # ---- configuration ----

    def configure(self, share: UmasterShare) -> None:
        """Put another share into force. Pools that stay keep their workers and queues."""
        for peer in share.vhosts:
            self.add_vhost(peer)
        for name in self.others({peer.name for peer in share.vhosts}):
            self.remove_vhost(name)

    def add_vhost(self, peer: VhostPeer) -> None:
        """Take a vhost in, or its other quotas."""
        for work in ("requests", "metrics"):
            pool = self.pools.get((peer.name, work))
            if pool is None:
                self.pools[peer.name, work] = Pool(peer, work)
            else:
                pool.peer = peer

    def others(self, names: Container[str]) -> list[str]:
        """Return the vhosts that there are beside `names`."""
        return list(dict.fromkeys(name for name, _ in self.pools if name not in names))

    def remove_vhost(self, name: str) -> None:
        """Refuse who waits for a vhost that is no longer configured, and let its workers go."""
        for work in ("requests", "metrics"):
            pool = self.pools.pop((name, work), None)
            if pool is None:
                continue
            self._demanding.discard(pool)
            for worker in list(pool.workers):
                self.worker_gone(worker)
                worker.channel.close()
            self._refuse_all(pool, 421, "no-vhost")

    def set_map(self, host_map: HostMap) -> None:
        self._map = host_map

    # ---- sources ----

    def add_source(
        self, channel: Peer, name: str, room: int = ROUTE_WINDOW, *, queues: bool = True
    ) -> Source:
        source = Source(channel, name, room, queues=queues)
        self._sources.add(source)
        return source

    def listener_gone(self, source: Source) -> None:
        """The channel of a listener has closed: what it has queued stays, since it may have died with its copies."""
        for offer in [offer for offer in source.open.values() if offer.fd >= 0]:
            del source.open[offer.source_id]
            offer.source = self._orphaned
            try:
                offer.source_id = tcp.cookie(offer.fd)
            except OSError:
                continue  # no socket that we could know again; it stays queued all the same
            self._orphaned.open[offer.source_id] = offer
        self.source_gone(source)

    def _comes_again(self, source: Source, id_: int, fd: int, mark: int) -> bool:
        """Say whether a listener offers anew what it has left here, which is its own again then."""
        try:
            offer = self._orphaned.open.pop(tcp.cookie(fd), None)
        except OSError:
            return False
        if offer is None or offer.fd < 0:
            return False  # a worker has been sent it, for a mark that it no longer has
        offer.source, offer.source_id, offer.mark = source, id_, mark
        source.open[id_] = offer
        return True

    def source_gone(self, source: Source) -> None:
        """The channel of `source` has closed: what it offered and nobody has yet, is closed; it offers again."""
        self.send_assigned()
        self._sources.discard(source)
        self._unsent.discard(source)
        for offer in list(source.open.values()):
            if offer.fd >= 0:
                self._close(offer)
        source.open.clear()
        for pool in list(self._queues):
            kept = deque(offer for offer in pool.queue if offer.source is not source)
            self._queued -= len(pool.queue) - len(kept)
            pool.queue = kept
            if not kept:
                self._queues.discard(pool)

    # ---- offers ----

    def route(
        self,
        source: Source,
        id_: int,
        client: Client,
        name: str,
        fd: int,
        *,
        metrics: bool,
        now: float,
        mark: int = 0,
    ) -> None:
        """Take an offer of a listener: `name` is a host name, or, for `metrics`, a vhost's name. Takes `fd` over."""
        try:
            offer = self._admit(source, id_, client, name, fd, now, mark)
        except RemoteProtocolError:
            os.close(fd)
            raise
        if self._leaving:
            self._give_back(offer)
            return
        if self._orphaned.open and self._comes_again(source, id_, fd, mark):
            self._close(offer)
            return
        vhost = name if metrics else self._map.find(name)
        pool = self.pools.get((vhost, "metrics" if metrics else "requests")) if vhost is not None else None
        if pool is None:
            self.unnamed_refusals += 1
            self._close(offer)
            self._end(offer, Refuse(id_, 404 if metrics else 421))
        elif self._dispatch(pool, offer, now):
            pool.wait = 0.0
        else:
            self._enqueue(pool, offer)

    def pass_on(
        self,
        worker: WorkerState,
        id_: int,
        client: Client,
        authority: str,
        fd: int,
        now: float,
        mark: int = 0,
    ) -> None:
        """Take an offer of a worker, for a sibling that is free now: a passed connection never queues. Takes
        `fd` over.
        """
        try:
            offer = self._admit(worker.source, id_, client, authority, fd, now, mark)
        except RemoteProtocolError:
            os.close(fd)
            raise
        if self._leaving:
            self._give_back(offer)
        elif not self._dispatch(worker.pool, offer, now):
            worker.pool.refused("no-sibling")
            self._close(offer)
            self._end(offer, Refuse(id_, 503))

    def _admit(
        self, source: Source, id_: int, client: Client, name: str, fd: int, now: float, mark: int
    ) -> Offer:
        if id_ in source.open:
            raise RemoteProtocolError("replayed-id", f"id {id_} is open already")
        if len(source.open) >= ROUTE_WINDOW:
            raise RemoteProtocolError("over-credit", f"more than {ROUTE_WINDOW} open offers")
        self._now = now
        offer = Offer(source, id_, fd, client, name, now, mark)
        source.open[id_] = offer
        self._budget.take()
        return offer

    def _close(self, offer: Offer) -> None:
        os.close(offer.fd)
        offer.fd = -1
        self._budget.give()

    def _end(self, offer: Offer, message: Message) -> None:
        """Have the source told, at the end of this turn, how its offer has ended.

        Not at once: a source that is gone is found out by sending, and what follows from that (`source_gone`) would
        change the queues and sets that our caller is going through.
        """
        source = offer.source
        if source.open.pop(offer.source_id, None) is not None:
            source.answers.append(message)
            self._unsent.add(source)

    def _dispatch(self, pool: Pool, offer: Offer, now: float) -> bool:
        """Assign `offer` to a worker of `pool`; False if none can have it now."""
        if not self._may_travel(pool) or (worker := pool.idlest(offer.source)) is None:
            return False
        self._next_id += 1
        self._assigned.setdefault(worker, {})[self._next_id] = offer
        if not worker.given:
            worker.since = now
            self._untaken.add(worker)
        worker.given[self._next_id] = offer
        worker.credit -= 1
        pool.shelve(worker)
        pool.handovers += 1
        self._travelling += 1
        return True

    def send_assigned(self) -> None:
        """Send each worker what it was assigned. What can't be sent goes to others, or waits."""
        while self._assigned:
            worker, offers = next(iter(self._assigned.items()))
            pool = worker.pool
            sent = worker.channel.send_all(
                [Dispatch(id_, offer.client, offer.authority, offer.mark) for id_, offer in offers.items()],
                [offer.fd for offer in offers.values()],
            )
            pool.dispatched += sent
            for id_ in list(offers)[:sent]:
                offer = offers.pop(id_)
                self._close(offer)
                pool.waited(self._now - offer.since)
            if worker.channel.closed:
                self.worker_gone(worker)
            elif offers:
                # The kernel has no room: as good as no credit, until it may have room again (`credit`, `sweep`).
                worker.blocked = True
                self._blocked.add(worker)
                worker.credit += len(offers)
                pool.shelve(worker)
                self._take_back(worker)
            self._assigned.pop(worker, None)

    def _take_back(self, worker: WorkerState) -> None:
        """What `worker` was assigned, and won't be sent, goes to others, or is queued in front, where it was."""
        pool = worker.pool
        for id_, offer in reversed(self._assigned.pop(worker, {}).items()):
            del worker.given[id_]
            pool.handovers -= 1
            self._travelling -= 1
            if self._leaving:
                self._give_back(offer)
            elif not offer.source.queues:
                self._refuse(pool, offer, "no-sibling")
            else:
                pool.queue.appendleft(offer)
                self._queues.add(pool)
                self._queued += 1
        if not worker.given:
            self._untaken.discard(worker)
        self._serve_queue(pool, self._now)
        if pool.failing:
            self._refuse_all(pool, 503, "failing")

    def _over_share(self, used: int, of_pool: int, limit: int) -> bool:
        """Say whether a vhost that has `of_pool` of the `used`, of `limit` in all, may have no more."""
        return used >= limit // 2 and of_pool >= max(MIN_SHARE, int(limit * VHOST_SHARE))

    def _may_travel(self, pool: Pool) -> bool:
        handovers = pool.handovers
        return handovers < pool.peer.handovers and (
            handovers < MIN_SHARE
            or not self._over_share(self._travelling, handovers, min(self._budget.limit, MAX_TRAVELLING))
        )

    def _enqueue(self, pool: Pool, offer: Offer) -> None:
        if pool.failing:
            self._refuse(pool, offer, "failing")
        elif len(pool.queue) >= pool.peer.queue_limit:
            self._refuse(pool, offer, "queue-full")
        elif not self._make_room(pool, offer):
            self._refuse(pool, offer, "over-share")
        else:
            pool.queue.append(offer)
            self._queues.add(pool)
            self._queued += 1
            if not pool.told:
                self._tell_demand(pool, offer.since)

    def _tell_demand(self, pool: Pool, now: float) -> None:
        """Tell the supervisors of `pool` what waits for them: they may have no worker, or too few."""
        supervisors = self.supervisors.get(pool.peer.name)
        if pool.work != "requests" or not supervisors or self._leaving:
            return
        pool.told = bool(pool.queue)
        (self._demanding.add if pool.told else self._demanding.discard)(pool)
        oldest = now - pool.queue[0].since if pool.queue else 0.0
        for supervisor in supervisors:
            self._to_tell[supervisor] = Demand(len(pool.queue), int(oldest * 1000))

    @property
    def _free(self) -> int:
        """Descriptors that aren't channels'."""
        return self._budget.limit - self._budget.used + self._queued

    @property
    def crowded(self) -> bool:
        """Whether queues have all that they may: who offers has to wait."""
        return self._queued > 0 and self._queued >= int(self._free * QUEUE_SHARE)

    @property
    def _slow_bound(self) -> int:
        """How many of all may wait for tenants that aren't prompt."""
        return max(1, int(self._free * SLOW_SHARE))

    def _make_room(self, pool: Pool, offer: Offer) -> bool:
        """Say whether `offer`, which has just come, may queue for `pool`. Where there is no room for more who aren't
        prompt, the longest of their queues makes some.
        """
        source, bound = offer.source, self._slow_bound
        opened = len(source.open) - 1  # without this one
        if (self._queued < bound and opened < source.slow_bound) or pool.prompt(offer.since):
            return True
        slow = self._slow_queues(offer.since)
        waiting = sum(len(other.queue) for other in slow)
        full = min(waiting, opened) >= source.slow_bound
        if waiting < bound and not full:
            return True
        longest = max(slow, key=lambda other: len(other.queue))
        # Another listener's connection that goes makes room among our descriptors, but none in this listener.
        helps = not full or longest.queue[-1].source is source
        if not helps or len(pool.queue) + 1 >= len(longest.queue):
            return False
        self._give_way(longest)
        return True

    def _clear_the_way(self, now: float) -> None:
        """Take what those have beyond their share that were prompt when they got it, and aren't any more."""
        slow = self._slow_queues(now)
        waiting = sum(len(pool.queue) for pool in slow)
        longest = [(-len(pool.queue), number) for number, pool in enumerate(slow)]
        heapq.heapify(longest)
        while longest:
            pool = slow[longest[0][1]]
            source = pool.queue[-1].source
            if waiting <= self._slow_bound and min(waiting, len(source.open)) <= source.slow_bound:
                heapq.heappop(longest)  # a shorter one may be of a listener that has less room
                continue
            self._give_way(pool)
            waiting -= 1
            if pool.queue:
                heapq.heapreplace(longest, (-len(pool.queue), longest[0][1]))
            else:
                heapq.heappop(longest)

    def _slow_queues(self, now: float) -> list[Pool]:
        return [pool for pool in self._queues if not pool.prompt(now)]

    def _give_way(self, pool: Pool) -> None:
        """Refuse who has come last."""
        self._queued -= 1
        self._refuse(pool, pool.queue.pop(), "over-share")
        if not pool.queue:
            self._queues.discard(pool)

    def _refuse(self, pool: Pool, offer: Offer, reason: str, status: int = 503) -> None:
        pool.refused(reason)
        self._close(offer)
        self._end(offer, Refuse(offer.source_id, status))

    def _refuse_all(self, pool: Pool, status: int, reason: str) -> None:
        self._queues.discard(pool)
        self._queued -= len(pool.queue)
        while pool.queue:
            self._refuse(pool, pool.queue.popleft(), reason, status)

    def _serve_queue(self, pool: Pool, now: float) -> None:
        while pool.queue and self._dispatch(pool, pool.queue[0], now):
            pool.wait = now - pool.queue.popleft().since
            self._queued -= 1
        if not pool.queue:
            self._queues.discard(pool)

    # ---- workers ----

    def add_supervisor(self, channel: Peer, vhost: str) -> Supervisor:
        """A supervisor of `vhost` has said hello. Raises RemoteProtocolError when it has too many already."""
        known = self.supervisors.get(vhost, set())
        if len(known) >= MAX_SUPERVISORS:
            raise RemoteProtocolError("too-many", f"{vhost} has {MAX_SUPERVISORS} supervisors already")
        self._next_supervisor += 1
        supervisor = Supervisor(channel, vhost, self._next_supervisor)
        self.supervisors.setdefault(vhost, known).add(supervisor)
        self._judge(vhost)
        return supervisor

    def supervisor_gone(self, supervisor: Supervisor) -> None:
        """The supervisor's channel has closed. Its workers go on: they have channels of their own."""
        known = self.supervisors.get(supervisor.vhost, set())
        known.discard(supervisor)
        self._to_tell.pop(supervisor, None)
        if not known:
            self.supervisors.pop(supervisor.vhost, None)
        self._judge(supervisor.vhost)

    def standing(self, supervisor: Supervisor, *, failing: bool) -> None:
        """The supervisor says whether its application runs at all."""
        if failing != supervisor.failing:
            supervisor.failing = failing
            self._judge(supervisor.vhost)
        if not failing and not supervisor.opened:
            supervisor.opened = True
            pool = self.pools.get((supervisor.vhost, "requests"))
            if pool is not None:
                self._choose(pool)

    def _choose(self, pool: Pool) -> None:
        """Find out again whose workers are given connections. What waits is served by `credit` and `sweep`."""
        able = (
            worker.supervisor.number
            for worker in pool.workers
            if worker.supervisor.opened and not worker.leaving
        )
        newest = max(able, default=0)
        if newest != pool.newest:
            pool.newest = newest
            for worker in pool.workers:
                pool.shelve(worker)

    def _chosen_again(self, worker: WorkerState) -> None:
        """`worker` isn't there any more: it may have been the last of the newest supervisor's."""
        supervisor, pool = worker.supervisor, worker.pool
        if supervisor.number == pool.newest and not any(
            other.pool is pool and not other.leaving for other in supervisor.workers.values()
        ):
            self._choose(pool)

    def _judge(self, vhost: str) -> None:
        """A vhost is failing if all of its supervisors say so; without any, it is only away, and is waited for."""
        pool = self.pools.get((vhost, "requests"))
        if pool is None:
            return
        known = self.supervisors.get(vhost, ())
        if not known:
            pool.told = False
            self._demanding.discard(pool)
        pool.failing = bool(known) and all(supervisor.failing for supervisor in known)
        if pool.failing:
            self._refuse_all(pool, 503, "failing")

    def may_add_worker(self, supervisor: Supervisor, number: int) -> None:
        """Raise RemoteProtocolError unless `supervisor` may announce a worker `number`."""
        if (supervisor.vhost, "requests") not in self.pools:
            raise RemoteProtocolError("no-vhost", f"{supervisor.vhost} is no longer configured")
        if number in supervisor.workers:
            raise RemoteProtocolError("replayed-id", f"worker {number} is announced already")
        if len(supervisor.workers) >= MAX_WORKERS:
            raise RemoteProtocolError("too-many", f"{MAX_WORKERS} workers are announced already")

    def no_room(self, supervisor: Supervisor, work: str) -> str:
        """Say why one more worker's channel can't be had now, which is nobody's fault; "" if it can.

        The one for metrics is outside of a vhost's share: there is one for each supervisor.
        """
        if self._budget.exhausted:
            return "no free descriptor"
        workers = len(self.pools[supervisor.vhost, "requests"].workers)
        if work == "requests" and self._over_share(self._budget.used, workers, self._budget.limit):
            return f"more than its share: it has {workers} workers"
        return ""

    def add_worker(self, supervisor: Supervisor, channel: Peer, number: int, work: str) -> WorkerState:
        pool = self.pools[supervisor.vhost, work]
        source = self.add_source(channel, supervisor.vhost, queues=False)
        worker = WorkerState(channel, number, pool, supervisor, source)
        supervisor.workers[number] = worker
        pool.workers.add(worker)
        if work == "requests" and supervisor.opened and supervisor.number > pool.newest:
            self._choose(pool)  # it had lost all it had
        return worker

    def credit(self, worker: WorkerState, count: int, now: float) -> None:
        """The worker can take `count` more; with 0, its channel may have room again."""
        self._now = now
        if worker.credit + count > MAX_CREDIT:
            raise RemoteProtocolError(
                "over-credit", f"{worker.credit} + {count} credits, {MAX_CREDIT} at most"
            )
        worker.credit += count
        worker.blocked = False
        self._blocked.discard(worker)
        worker.pool.shelve(worker)
        if worker.pool.queue:
            self._serve_queue(worker.pool, now)

    def taken(self, worker: WorkerState, id_: int, now: float) -> None:
        """The worker answers for this connection from now on."""
        offer = worker.given.get(id_)
        if offer is None or offer.fd >= 0:  # assigned only: it has guessed the id
            raise RemoteProtocolError("forged-id", f"id {id_} was not given to this worker")
        del worker.given[id_]
        worker.since = self._now = now
        if not worker.given:
            self._untaken.discard(worker)
        pool = worker.pool
        pool.taken += 1
        source = offer.source
        if source.open.pop(offer.source_id, None) is not None:
            source.settled.append(offer.source_id)
            self._unsent.add(source)
        self._handed_over(pool, now)

    def _handed_over(self, pool: Pool, now: float) -> None:
        pool.handovers -= 1
        self._travelling -= 1
        if pool.queue:
            self._serve_queue(pool, now)

    def leave(self, worker: WorkerState) -> None:
        """The worker wants nothing more; what it has taken and offered stays open."""
        worker.leaving = True
        worker.credit = 0
        worker.pool.shelve(worker)
        self._chosen_again(worker)

    def worker_gone(self, worker: WorkerState, message: type[Retry] | type[Drop] = Retry) -> None:
        """The worker's channel has closed, or its supervisor has buried it: what it hadn't taken is offered again."""
        pool = worker.pool
        if worker not in pool.workers:
            return
        pool.workers.discard(worker)
        worker.credit = 0
        pool.shelve(worker)
        self._untaken.discard(worker)
        self._blocked.discard(worker)
        if worker.supervisor.workers.get(worker.number) is worker:
            del worker.supervisor.workers[worker.number]
        self._chosen_again(worker)
        self._take_back(worker)
        self._travelling -= len(worker.given)
        for offer in worker.given.values():
            pool.handovers -= 1
            still = self._is_still_for(pool, offer)
            self._end(offer, message(offer.source_id) if still else Refuse(offer.source_id, 421))
        worker.given.clear()
        self.source_gone(worker.source)

    def _is_still_for(self, pool: Pool, offer: Offer) -> bool:
        """Say whether a listener's offer would get to `pool` again. Where its name is another vhost's by now it must
        not be made again: who has had it may have kept a copy, and would read along.
        """
        listeners = offer.source.queues and pool.work == "requests"
        return not listeners or self._map.find(offer.authority) == pool.peer.name

    def buried(self, supervisor: Supervisor, number: int) -> None:
        """The supervisor has reaped worker `number`: nobody reads what it was given."""
        worker = supervisor.workers.get(number)
        if worker is None:
            return  # its channel's end has told us already
        self.worker_gone(worker)
        worker.channel.close()

    # ---- time ----

    def sweep(self, now: float) -> list[WorkerState]:
        """Refuse what has waited too long, and find workers that don't take. Returns those newly found stuck."""
        self._now = now
        for worker in list(self._blocked):
            self.credit(worker, 0, now)  # ETOOMANYREFS has no event of its own
        for pool in list(self._queues):
            limit = now - pool.peer.queue_timeout
            while pool.queue and pool.queue[0].since <= limit:
                self._queued -= 1
                pool.wait = pool.peer.queue_timeout
                self._refuse(pool, pool.queue.popleft(), "queue-timeout")
            self._serve_queue(pool, now)
        self._clear_the_way(now)
        for pool in self._queues | self._demanding:
            if pool.queue or pool.told:
                self._tell_demand(pool, now)
        found = []
        for worker in list(self._untaken):
            if not worker.stuck_at:
                if now - worker.since > TAKE_TIMEOUT:
                    worker.stuck_at = now
                    worker.pool.shelve(worker)
                    worker.supervisor.channel.send(Stuck(worker.number))
                    found.append(worker)
            elif now - worker.stuck_at > BURY_TIMEOUT:
                self.worker_gone(worker, Drop)
                worker.channel.fault("takes-nothing", "its supervisor did not bury it")
        return found

    def flush(self, *, hold: bool = False) -> bool:
        """Send what this turn has come to: to workers what they were assigned, and to sources what was settled and how
        other offers have ended. `hold`: who has only few to hear of that are settled hears of them later; returns
        whether there are any.

        A worker or source that turns out to be gone may add to what others are to hear, so this goes on until there is
        nothing.
        """
        held: set[Source] = set()
        while self._assigned or self._unsent:
            self.send_assigned()
            if not self._unsent:
                break
            source = self._unsent.pop()
            few = not source.answers and len(source.settled) < source.batch
            if hold and few and not source.channel.closed:
                held.add(source)
                continue
            settled, source.settled = source.settled, []
            answers, source.answers = source.answers, []
            source.channel.send_all(
                [
                    *(
                        Settled(tuple(settled[start : start + MAX_BATCH]))
                        for start in range(0, len(settled), MAX_BATCH)
                    ),
                    *answers,
                ]
            )
        self._unsent = held & self._sources
        told, self._to_tell = self._to_tell, {}
        for supervisor, demand in told.items():
            supervisor.channel.send(demand)
        return bool(held)

    def give_back(self) -> None:
        """We are leaving: what is queued, or was on its way to us, is to be offered to our successor."""
        self._leaving = True
        self._to_tell.clear()
        for pool in self._queues:
            while pool.queue:
                self._give_back(pool.queue.popleft())
        self._queues.clear()
        self._queued = 0

    def _give_back(self, offer: Offer) -> None:
        self._close(offer)
        self._end(offer, Retry(offer.source_id))

    @property
    def travelling(self) -> int:
        """How many offers are dispatched and not taken."""
        return self._travelling

    def by_vhost(self) -> Iterator[tuple[str, Pool]]:
        for (name, work), pool in self.pools.items():
            if work == "requests":
                yield name, pool
