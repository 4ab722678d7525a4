"""A tenant's supervisor: keeps a prototype and its workers. It never touches a client and never imports the
application.

Theory of operation. Everything happens in `_turn`, a few times a second and whenever something has happened: the
observer fills in the table of workers, the policy says what is to be done (a pure function, policy.py), the nursery
starts whom it wants, the evictor ends whom it has marked, and whoever hangs.

    worker: SPAWNING ── Ready ──> SERVING ── marked, and enough others serve ──> LEAVING ──> reaped
    any of these: no Beat, Stuck, a broken channel: SIGKILL ──> reaped

The pool is full before any of its workers is announced to umaster, so that nobody meets a cold tenant. (The channel to
umaster stands before: for metrics, for Demand, which starts a tenant that sleeps, and for Standing, by which umaster
learns that it needn't keep anybody waiting for an application that doesn't run.) For each worker we make a channel and
hand the far end to umaster; when umaster is replaced, we make new ones. We reap all (we are the subreaper of what the
prototype forks twice), and tell umaster who is buried.

What our children say is the tenant's word: a pid is believed only if the kernel says that it is our child, numbers on
the scoreboard harm nobody else, and a broken control channel costs the child its life.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from dataclasses import replace
from typing import NoReturn

from pyttpd import confine, metrics, privileges
from pyttpd.address import Address, parse
from pyttpd.channel import Channel
from pyttpd.config.kinds import Mount
from pyttpd.config.shares import VhostShare
from pyttpd.rendezvous import LEFT
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.service import Service
from pyttpd.service import parse as parse_options
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    STANDING_IS_ANSWERED,
    Attach,
    Beat,
    Demand,
    Detached,
    Detail,
    Failed,
    Gone,
    Goodbye,
    Message,
    Ready,
    Spawn,
    Spawned,
    Standing,
    Stuck,
    Welcome,
    Worker,
)
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost import inquest, policy, prototype, report
from pyttpd_vhost.backoff import FIRST_DELAY, LAST_DELAY, STABLE_AFTER
from pyttpd_vhost.commons import Commons
from pyttpd_vhost.evictor import SPAWN_TIMEOUT, Evictor
from pyttpd_vhost.execution.places import Listeners
from pyttpd_vhost.execution.plan import wanted
from pyttpd_vhost.execution.programs import Programs
from pyttpd_vhost.inquest import Inquest
from pyttpd_vhost.kinds.gateway.faults import REASONS
from pyttpd_vhost.logs import Logs
from pyttpd_vhost.nursery import Nursery
from pyttpd_vhost.observer import Observer
from pyttpd_vhost.policy import Limits, Load, Notes, State
from pyttpd_vhost.processes import PrototypeChild, WorkerChild, keep_only, send_signal
from pyttpd_vhost.scoreboard import Scoreboard
from pyttpd_vhost.scrapes import Scrapes
from pyttpd_vhost.stress import Stress
from pyttpd_vhost.worker import ASKED, CREDIT, REPLACED, STOP

#: How often (s) we look: while anything goes on, while nothing does, and while the tenant sleeps.
BUSY_INTERVAL, QUIET_INTERVAL, ASLEEP_INTERVAL = 0.1, 0.5, 30.0
#: Who was woken has other things to do for so long (s).
SETTLED = 2.0
#: Who was woken and has no prototype any more for so many times idle_timeout sleeps again as before.
DEEP = 10
#: Rows beyond two for each worker that there may be: one that leaves and its replacement.
SPARE_ROWS = 2
#: What the system keeps to itself even before the tenant's own, narrower rules stand. /proc is read by us alone: for
#: our children's memory, and to find what they leave behind.
_NOT_FOR_TENANTS = ("proc", "sys", "run", "dev", "boot", "lost+found")


def stage_one_policy(tmp: str, reach: tuple[Address, ...] = ()) -> confine.Policy:
    """Return what the supervisor itself may do: no network at all, and of the files what its uid may, less
    the system's.

    reach: what its tenant will be allowed. No more can be opened later, so it has to be said when the process is
    started; the share may only ask for as much.

    The tenant's own rules come on top of it, in the prototype: before the share has come nobody knows its root.
    """
    tops = tuple(f"/{name}" for name in sorted(os.listdir("/")) if name not in _NOT_FOR_TENANTS)
    devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")
    return confine.Policy(
        read=("/proc",),
        write=(*tops, *devices, tmp),
        execute=tops,
        allow_exec=True,
        allow_fork=True,
        allow_connect=True,
        allow_bind=True,
        connects_late=True,
        reach=reach,
    )


def serve(service: Service) -> None:
    """Run a vhost's supervisor in this process."""
    privileges.adopt_orphans()
    # Afterwards nobody may listen. Who sleeps runs no program, nor does who is forked from it.
    listeners = Listeners() if service.asleep else Listeners.make(service.options.tmp)
    service.confine(stage_one_policy(service.options.tmp, service.options.allow))
    Supervisor(service, listeners)
    service.run()


def warm() -> None:
    """Make what all sleeping supervisors need, once, in the seed that they are forked from."""
    parse_options(Role.VHOST, [])
    confine.prepare(stage_one_policy("/tmp"))


def may_sleep(share: VhostShare) -> bool:
    """Whether a tenant needs no process but its supervisor until somebody comes (`--asleep`, pyttpd.seed)."""
    return share.pool.mode == "ondemand" and not wanted(share)


class Supervisor:
    """The role."""

    def __init__(self, service: Service, listeners: Listeners) -> None:
        self._service = service
        self._loop = service.loop
        self._log = service.log
        self._logs = Logs(service)
        self._inquest = Inquest(service.loop, lambda: self._logs.slow, send_signal)
        self._share: VhostShare | None = None
        self._share_memory(rows=1, limit=0, mounts=())
        self._stress = Stress()
        self._workers: dict[int, WorkerChild] = {}
        self._stopped: dict[int, float] = {}
        self._drains_for = ""
        #: What came last is another share than ours: whether it is in force is our successor's to say.
        self._superseded = False
        self._next_number = 0  # which is the metrics' worker's
        self._nursery = Nursery(self._be_prototype, lambda sock: self._channel(sock, "prototype", 0))
        self._programs = Programs(service, listeners)
        self._evictor = Evictor(service.log, self._bury, scoped=service.signals_scoped)
        self._notes = Notes(0)
        self._waiting = 0
        self._limits_reached = 0
        self._short_of_descriptors = False
        self._failing = False
        self._proved = False
        self._open = False
        self._unanswered = 0
        self._may_start = False
        self._born = self._loop.now
        self._umaster: Channel | None = None
        self._scrapes = Scrapes(service, self._pool)
        self._timer = self._loop.call_later(QUIET_INTERVAL, self._turn)
        self._link = service.link(
            Directory.VHOST,
            on_open=self._on_umaster,
            on_message=self._from_umaster,
            on_lost=self._umaster_lost,
        )
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        service.on_drain(self._drain)
        self._subscription = service.fetch_shares(self._on_share, service.renew)
        if service.woken:
            self._loop.call_later(SETTLED, metrics.load)  # for the children that answer scrapes

    def _on_share(self, _: str, data: bytes) -> bool:
        """Put the first share into force; what changes it afterwards is our successor's to serve by."""
        share = VhostShare.from_json(data)
        if share.name != self._service.options.name:
            raise ValueError("the share of another vhost")
        if self._service.asleep and not may_sleep(share):
            self._wake()
            return False
        first = self._share is None
        if first:
            self._share = share
            self._service.log_as(share.log)
            rows = 2 * share.pool.max_workers + SPARE_ROWS
            self._share_memory(rows, limit=share.http.max_connections_per_client, mounts=share.mounts)
            # Who succeeds somebody shows first that the application loads, also where it could sleep; and who was woken
            # knows that somebody waits.
            woken = self._service.woken and may_sleep(share)
            least = int(self._service.renewing or woken)
            self._notes = policy.first_notes(share.pool, self._loop.now, least=least)
            self._logs.open(share)
            self._programs.open(share, self._logs.printed, rows)
            self._link.start()
            if self._was_started_for(share):
                self._service.when_sealed(self._begin)
            return False
        self._superseded = self._share != replace(share, generation=self._share.generation)  # type: ignore[union-attr]
        if self._superseded:
            self._log.info("the share has changed: a successor is asked for", generation=share.generation)
            self._service.renew()
            return False
        return self._proved

    def _was_started_for(self, share: VhostShare) -> bool:
        """Whether this process may reach what its tenant is allowed; say what is missing, if not.

        What isn't open from the start can't be opened any more. Without it the application would fail later, somewhere.
        """
        shut = [each for each in share.allow if parse(each) not in self._service.options.allow]
        if shut:
            options = " ".join(f"--allow {each}" for each in shut)
            self._nursery.failed(f"started without {options}", self._loop.now, loading=True)
            self._log.error(
                "the configuration allows an address that this container was started without: add the option to its "
                "command in the compose file, and bring it up again",
                missing=options,
            )
        return not shut

    def _share_memory(self, rows: int, *, limit: int, mounts: tuple[Mount, ...]) -> None:
        """Make what workers share with us; before anything is forked."""
        self._board = Scoreboard(rows, cells=len(mounts) * len(REASONS))
        self._commons = Commons(rows, limit=limit)
        self._observer = Observer(self._board)

    def _begin(self) -> None:
        self._may_start = True
        self._turn()

    # ---- one turn ----

    def _turn(self) -> None:
        """Look, decide, act; then again, soon if anything goes on."""
        self._timer.cancel()
        share, now = self._share, time.monotonic()
        active = False
        self._end_stopped(now)
        if self._drains_for == REPLACED and self._service.nobody_follows:
            self._dismiss_all(STOP)  # whoever was to follow won't
        if share is not None and self._may_start:
            active = self._observer.look(self._workers.values(), share.pool.max_threads, now)
            self._inquest.listen(
                share.pool, self._workers.values(), self._nursery.prototype, self._board, now
            )
            self._evictor.watch(
                self._workers.values(),
                share.grace,
                now,
                # A lifespan's startup is a part of loading.
                preload=share.preload and not any(mount.kind == "asgi" for mount in share.mounts),
                patience=inquest.killed_after(share.pool),
            )
            if self._nursery.prototype is not None:
                self._evictor.watch_prototype(self._nursery.prototype, now)
            self._evictor.clear_strays(self._known(), now)
            self._stress.follow(
                self._workers.values(), self._board, self._commons, self._waiting, now, self._log
            )
            if not self._service.draining:
                self._programs.look(now)
                self._follow_policy(share, now)
                self._tell_how_it_stands(share, now)
        elif share is not None and self._nursery.crash_loop():
            self._tell_how_it_stands(share, now)  # started for another share: nothing will ever run here
        moving = len(self._workers) < self._notes.size or any(
            worker.state is not State.SERVING or worker.due for worker in self._workers.values()
        )
        busy = active or moving or self._waiting or self._stopped
        quiet = ASLEEP_INTERVAL if self._service.asleep and self._proved else QUIET_INTERVAL
        self._timer = self._loop.call_later(BUSY_INTERVAL if busy else quiet, self._turn)

    def _kill_stuck(self, worker: WorkerChild) -> None:
        """Umaster says that `worker` takes nothing: it is asked where it stands, and killed."""
        self._log.warning("worker takes nothing and is killed", worker=worker.number)
        if worker.pid and self._inquest.ask(worker, self._board, time.monotonic() - worker.last_beat, 0.0):
            self._loop.call_later(inquest.COLLECT, lambda: self._kill_if_there(worker, "stuck"))
        else:
            self._evictor.kill(worker, "stuck")

    def _kill_if_there(self, worker: WorkerChild, reason: str) -> None:
        """Kill `worker`, unless it was reaped meanwhile: its pid may be another process's by now."""
        if worker.number in self._workers:
            self._evictor.kill(worker, reason)

    def _follow_policy(self, share: VhostShare, now: float) -> None:
        nursery = self._nursery
        # Nobody is kept waiting for one that is failing: it has to be tried as if somebody was.
        waiting = max(self._waiting, int(self._failing))
        load = Load(waiting, nursery.can_spawn(now) and self._has_room())
        plan = policy.decide(share.pool, self._workers.values(), load, self._notes, now)
        self._notes = plan.notes
        for member, reason in plan.mark:
            self._evictor.mark(member, reason)
        for member in plan.postpone:
            self._evictor.postpone(member)
        for _ in range(plan.start):
            if not self._has_room() or not self._spawn(share, now):
                break
        for member in plan.retire:
            self._evictor.retire(self._workers[member.number], now)
        if plan.limit_reached:
            self._limits_reached += 1
            self._log.warning(
                "max_workers is reached: connections may have to wait", workers=share.pool.max_workers
            )
        if nursery.prototype is None and (self._notes.size or waiting):
            if self._service.asleep:
                self._wake()  # from here on there would be a tenant's code in what was forked from a seed
                return
            nursery.wake(now)
        elif plan.sleep and nursery.prototype is not None:
            self._log.info("nobody has come for a while: the prototype ends")
            self._evictor.dismiss_prototype(nursery.prototype)

    def _has_room(self) -> bool:
        """Whether there is a row, and a descriptor for the control channel, for one worker more."""
        short = self._service.budget.exhausted
        if short and not self._short_of_descriptors:
            self._log.warning(
                "no descriptor is left for another worker: raise the limit (ulimit -n), or lower max_workers",
                workers=len(self._workers),
            )
        self._short_of_descriptors = short
        return bool(self._board.free) and not short

    def _tell_how_it_stands(self, share: VhostShare, now: float) -> None:
        """Open when the pool is full (or as full as it gets); keep umaster and our keeper informed."""
        serving = sum(worker.state is State.SERVING for worker in self._workers.values())
        for worker in self._workers.values():
            if worker.ready and now - worker.ready > STABLE_AFTER:
                self._nursery.healthy()
                break
        # Who succeeds somebody shows first that the processes of its mounts run, too.
        proving = self._service.renewing and not self._proved
        problem = self._programs.problem if proving else ""
        failing = (self._nursery.crash_loop() and not serving) or bool(problem)
        late = now - self._born > SPAWN_TIMEOUT
        full = serving >= share.pool.first or self._short_of_descriptors
        if not self._open and serving and (full or late):
            self._open = True
            for worker in self._workers.values():
                self._attach(worker)
            self._say_open()
        if failing is not self._failing:
            self._failing = failing
            if failing and self._umaster is not None:
                self._umaster.send(Standing("failing"))
            elif not failing:
                self._say_open()
            failure = self._nursery.failure
            if failing:
                reason = problem or (failure.reason if failure else "unknown")
                self._log.warning("application does not run: clients get 503", reason=reason)
                if not self._proved:
                    self._subscription.failed(reason)
                    self._service.give_up()
            else:
                self._log.info("application runs again")
        asleep = share.pool.mode == "ondemand" and not failing and not proving
        well = self._umaster is not None and bool((serving and self._open and not self._unanswered) or asleep)
        well = well and (not proving or self._programs.proven)
        (self._service.ready if well else self._service.not_ready)()
        if well:
            self._proved = True
            if not self._superseded:
                self._subscription.in_force()

    def _say_open(self) -> None:
        """Have umaster give all that comes to our workers, and nothing to a predecessor's any more.

        We aren't ready before it says so: whoever reloads a tenant hears only then that its new code serves.
        """
        if self._umaster is None or self._service.draining:
            return
        self._umaster.send(Standing("open"))
        if self._umaster.version >= STANDING_IS_ANSWERED:
            self._unanswered += 1

    def _end_stopped(self, now: float) -> None:
        """Kill whoever of our children a signal has stopped, before the kernel lets somebody wake it up again."""
        for pid in privileges.stopped_for_good(self._stopped, now):
            worker = next((worker for worker in self._workers.values() if worker.pid == pid), None)
            child = self._nursery.prototype
            self._log.error("process is stopped and is killed", pid=pid, worker=worker and worker.number)
            if worker is not None:
                self._evictor.kill(worker, "stopped")
            elif child is not None and child.pid == pid:
                self._evictor.kill_prototype(child)
            else:
                send_signal(pid, signal.SIGKILL)

    def _known(self) -> set[int]:
        """Return the pids of all our children that we have made."""
        known = {worker.pid for worker in self._workers.values() if worker.pid} | self._scrapes.pids
        if self._nursery.prototype is not None:
            known.add(self._nursery.prototype.pid)
        return known | self._programs.pids

    # ---- the prototype ----

    def _channel(self, sock: socket.socket, peer: str, number: int) -> Channel:
        channel = Channel(
            sock,
            Kind.CONTROL,
            Side.BINDER,
            loop=self._loop,
            log=self._log,
            faults=self._service.faults,
            peer=peer,
            peer_name=str(number),
            on_message=self._from_prototype if peer == "prototype" else self._from_worker,
            on_close=self._control_lost,
        )
        self._service.budget.take()
        channel.budget = self._service.budget
        return channel

    def _be_prototype(self, control: socket.socket) -> NoReturn:
        """In the forked child."""
        assert self._share is not None
        entries = self._logs.entries
        equipment = self._programs.equipment
        kept = (control.fileno(), self._logs.printed, entries, self._inquest.fd, *equipment.fds)
        keep_only(*(fd for fd in kept if fd >= 0))
        options = self._service.options
        prototype.main(
            self._share,
            control,
            self._board,
            self._commons,
            self._log,
            printed=self._logs.printed,
            entries=entries,
            tracebacks=self._inquest.fd,
            tmp=options.tmp,
            one_uid=options.one_uid,
            told="" if self._nursery.failure is None else self._nursery.failure.reason,
            equipment=equipment,
        )

    def _from_prototype(self, channel: Channel, message: Message, _: int | None) -> None:
        child = channel.owner
        assert isinstance(child, PrototypeChild)
        child.last_beat = self._loop.now
        match message:
            case Ready() if not child.ready:
                assert self._share is not None
                self._nursery.loaded(child, time.monotonic(), imported=self._share.preload)
                if self._share.preload:
                    self._log.info("application loaded", seconds=round(child.loaded_in, 3))
                else:
                    self._log.info("prototype is there: each worker imports the application")
                self._turn()
            case Spawned(number, pid):
                worker = self._workers.get(number)
                code = self._nursery.born(worker, number, pid, self._known())
                if worker is not None and code is not None:
                    self._worker_gone(worker, code)
                elif worker is not None and worker.doomed:
                    self._evictor.kill(worker, worker.why)
            case Detail(text):
                self._nursery.detail(text)
            case Failed(reason):
                self._failed(reason, loading=True)

    def _failed(self, reason: str, *, loading: bool) -> None:
        self._nursery.failed(reason, time.monotonic(), loading=loading)
        if loading:
            self._log.error("application does not load", reason=reason)

    # ---- workers ----

    def _spawn(self, share: VhostShare, now: float) -> bool:
        child = self._nursery.prototype
        assert child is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._next_number = self._next_number % 0x7FFFFFFF + 1
        worker = WorkerChild.new(
            self._next_number,
            self._board.take(),
            self._channel(ours, "worker", self._next_number),
            Limits.draw(share.pool),
            now,
        )
        worker.control.owner = worker
        worker.at_birth = child.resident
        self._workers[worker.number] = worker
        with theirs:
            if child.control.send(Spawn(worker.number, worker.slot), theirs.fileno()):
                return True
        self._bury(worker, "never-started")
        return False

    def _from_worker(self, channel: Channel, message: Message, _: int | None) -> None:
        worker = channel.owner
        assert isinstance(worker, WorkerChild)
        worker.last_beat = self._loop.now
        match message:
            case Ready() if worker.state is State.SPAWNING:
                worker.state = State.SERVING
                self._nursery.ready(worker)
                self._nursery.serves()
                took = round(worker.ready - worker.born, 6)
                self._log.debug("worker is ready", worker=worker.number, seconds=took)
                opened = self._open
                self._turn()  # umaster hears that we stand well before it hears of the worker
                if opened:
                    self._attach(worker)
                # It takes some of what waits; umaster says soon if anything still does.
                self._waiting = max(0, self._waiting - CREDIT)
            case Ready() if worker.state is State.LEAVING and not worker.ready:
                worker.ready = self._loop.now  # asked to leave before it was there
            case Beat():
                pass
            case Detached():
                self._attach_again(worker)
            case Goodbye(reason) if reason == ASKED:
                self._log.info("worker was asked to leave by a signal", worker=worker.number)
                self._evictor.leaves(worker, ASKED, self._loop.now)
                self._turn()
            case Goodbye(reason):
                if not self._may_have_timed_out(worker):
                    raise RemoteProtocolError("not-permitted", "no request of it can have had its time yet")
                self._log.warning("worker leaves", worker=worker.number, reason=reason)
                self._evictor.leaves(worker, "request-timeout", self._loop.now)
                self._turn()
            case Detail(text):
                self._nursery.detail(text)
            case Failed(reason) if worker.state is State.SPAWNING:
                self._failed(reason, loading=True)  # without preload it is the workers who import
            case Failed(reason):
                self._failed(reason, loading=False)
                self._evictor.kill(worker, "failed")  # which it is about to do itself
            case _:
                raise RemoteProtocolError("not-permitted", f"{type(message).__name__} from a worker")

    def _may_have_timed_out(self, worker: WorkerChild) -> bool:
        """Whether a request in `worker` may have had request_timeout. Who says so too soon would be replaced without
        the delay that a worker that dies young brings on.
        """
        assert self._share is not None
        limit = self._share.pool.request_timeout
        return bool(worker.ready and limit) and time.monotonic() - worker.ready >= limit

    def _attach(self, worker: WorkerChild) -> None:
        """Give `worker` a channel to umaster, if that is there and we are open: to serve, or to pass on what it has."""
        if not self._open or worker.state is State.SPAWNING or self._umaster is None or self._umaster.closed:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            worker.attached = time.monotonic()
            if self._umaster.send(Worker(worker.number, "requests"), theirs.fileno()):
                worker.control.send(Attach(self._umaster.version), ours.fileno())

    def _attach_again(self, worker: WorkerChild) -> None:
        """The worker has closed its channel; what was in it is gone with it, which umaster may not have noticed yet."""
        if worker.state is not State.SPAWNING and self._umaster is not None and not worker.attach_pending:
            self._umaster.send(Gone(worker.number))
            if time.monotonic() - worker.attached >= FIRST_DELAY + worker.attach_delay:
                worker.attach_delay = 0.0
                self._attach(worker)
                return
            # Closed as soon as it was there, so umaster has no room for it: growing and jittered, as links are.
            worker.attach_delay = min(LAST_DELAY, max(FIRST_DELAY, 2 * worker.attach_delay))
            worker.attach_pending = True
            umaster = self._umaster
            self._loop.call_later(
                worker.attach_delay * random.uniform(0.5, 1.5), lambda: self._attach_if_there(worker, umaster)
            )

    def _attach_if_there(self, worker: WorkerChild, umaster: Channel) -> None:
        worker.attach_pending = False
        if self._workers.get(worker.number) is worker and umaster is self._umaster:
            self._attach(worker)

    def _bury(self, worker: WorkerChild, reason: str) -> None:
        """The worker is reaped, or never was."""
        del self._workers[worker.number]
        worker.control.close()
        self._inquest.forget(worker.pid)
        self._board.give_back(worker.slot, worker.number)
        self._commons.clear(worker.slot)
        self._programs.clear(worker.slot)
        self._evictor.counts.add_exit(reason)
        if self._umaster is not None:
            self._umaster.send(Gone(worker.number))

    def _control_lost(self, channel: Channel, reason: str) -> None:
        """A child has closed its control channel, or broken the protocol: it is of no more use."""
        match channel.owner:
            case PrototypeChild() as child:
                self._evictor.kill_prototype(child)
            case WorkerChild() as worker if worker.state is not State.LEAVING:
                self._evictor.kill(worker, "mute" if reason == "peer-gone" else "protocol")

    # ---- reaping ----

    def _reap(self) -> None:
        for pid, code in privileges.ended(self._stopped):
            if self._nursery.prototype is not None and pid == self._nursery.prototype.pid:
                self._prototype_gone(self._nursery.prototype, code)
            elif pid in self._scrapes.pids:
                self._scrapes.done(pid)
            elif not self._programs.gone(pid, code):
                self._reaped(pid, code)
        if self._stopped and self._service.asleep:
            self._turn()  # who sleeps looks seldom

    def _reaped(self, pid: int, code: int) -> None:
        """A worker has ended, or something that one has left behind."""
        for worker in self._workers.values():
            if worker.pid == pid:
                self._worker_gone(worker, code)
                return
        self._nursery.reaped_early(pid, code)

    def _prototype_gone(self, child: PrototypeChild, code: int) -> None:
        child.control.receive(prototype.MAX_WORDS)  # its last words, which may say why
        child.control.close()
        now = time.monotonic()
        delay = self._nursery.prototype_died(child, now)
        # Workers it has forked and not told of are nobody's: they end when they find their control channel closed.
        for worker in [worker for worker in self._workers.values() if not worker.pid]:
            self._bury(worker, "never-started")
        if not self._service.draining and not child.dismissed:
            self._nursery.blame(f"the prototype ended with status {code}", now)
            self._log.warning("prototype ended and is started again", status=code, delay=round(delay, 2))
        assert self._share is not None
        if child.dismissed and self._service.woken and may_sleep(self._share):
            self._loop.call_later(DEEP * self._share.pool.idle_timeout, self._sleep)
        self._turn()
        self._leave_when_empty()

    def _worker_gone(self, worker: WorkerChild, code: int) -> None:
        now = time.monotonic()
        if not worker.control.closed:
            worker.control.receive(prototype.MAX_WORDS)
        asked = worker.state is State.LEAVING
        ours = (
            asked
            or worker.why == "request-timeout"
            or worker.why == "failed"
            or (worker.sentence and code == -worker.sentence)
        )
        reason = worker.why if ours and worker.why else "crashed" if code else "left"
        self._bury(worker, reason)
        if asked:
            self._log.info("worker left", worker=worker.number, reason=reason, status=code)
        if reason == ASKED:
            # Its own word: one that says so as soon as it lives is waited for like one that dies.
            self._nursery.worker_died(now - (worker.ready or now), now)
        elif asked and not code:
            self._nursery.healthy()
        if not asked and not self._service.draining:
            delay = self._nursery.worker_died(now - (worker.ready or now), now)
            self._nursery.blame(f"worker {worker.number} ended with status {code}: {reason}", now)
            self._log.warning(
                "worker ended", worker=worker.number, status=code, reason=reason, delay=round(delay, 2)
            )
        self._turn()
        self._leave_when_empty()

    # ---- umaster ----

    def _on_umaster(self, channel: Channel, _: Welcome) -> None:
        self._umaster = channel
        self._waiting = 0
        if self._failing:
            channel.send(Standing("failing"))
        self._scrapes.attach(channel)
        for worker in self._workers.values():
            self._attach(worker)
        if self._open:
            self._say_open()
        self._turn()

    def _from_umaster(self, channel: Channel, message: Message, _: int | None) -> None:
        match message:
            case Demand(waiting, _):
                self._waiting = waiting
                self._turn()
            case Stuck(number):
                worker = self._workers.get(number)
                if worker is None:
                    channel.send(Gone(number))
                else:
                    self._kill_stuck(worker)
            case Standing("open") if self._unanswered:
                self._unanswered -= 1
                self._turn()
            case Standing():
                raise RemoteProtocolError("not-permitted", "an answer to what was never said")
            case Goodbye():
                pass  # it closes when it has settled what is open; the link comes back to its successor

    def _umaster_lost(self, reason: str) -> None:
        self._umaster = None
        self._unanswered = 0
        self._waiting = 0
        (self._log.info if reason == LEFT else self._log.warning)("umaster is gone", reason=reason)

    def _pool(self) -> report.Pool:
        """Return what a scraper is to be told."""
        assert self._share is not None
        return report.Pool(
            self._share.name,
            self._share.pool.mode,
            self._share.mounts,
            list(self._workers.values()),
            self._board,
            self._nursery,
            self._evictor.counts,
            self._notes,
            self._stress,
            tuple(self._logs.lost()),
            self._programs,
            self._waiting,
            self._limits_reached,
            self._failing,
            time.monotonic(),
            self._born,
        )

    # ---- the end ----

    def _drain(self) -> None:
        self._dismiss_all(STOP if self._service.nobody_follows else REPLACED)
        self._leave_when_empty()

    def _wake(self) -> None:
        """Make way for one that may meet a tenant's code and its clients; whoever comes waits in umaster."""
        if self._umaster is not None:
            self._umaster.send(Goodbye("leaving"))
        self._link.close()
        self._service.wake()

    def _sleep(self) -> None:
        """Make way for one that sleeps, if nobody has come since: it takes less memory than we, who have met clients.

        Our counters begin anew with it, as with every successor; by now whoever scrapes us has seen them.
        """
        if not self._workers and self._nursery.prototype is None and not self._failing:
            self._service.sleep()

    def _dismiss_all(self, reason: str) -> None:
        self._drains_for = reason
        for worker in self._workers.values():
            self._evictor.dismiss(worker, reason, time.monotonic())

    def _leave_when_empty(self) -> None:
        if self._service.draining and not any(worker.pid for worker in self._workers.values()):
            if not self._programs.leave(self._leave_when_empty):
                return
            if self._nursery.prototype is not None:
                self._evictor.kill_prototype(self._nursery.prototype)
            self._programs.close()
            self._evictor.leave_nobody()
            if self._umaster is not None:
                # Not before: workers that still have connections to pass may need a channel to a new umaster.
                self._umaster.send(Goodbye("leaving"))
            self._link.close()
            self._logs.finish()
            self._service.leave()
