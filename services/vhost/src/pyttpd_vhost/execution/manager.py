"""The execution manager: starts, counts, watches and restarts a vhost's application processes, whatever their kind.

Rules
  1. A mount with a `command` has a *pool* of processes with one listening socket, which each gets as its descriptor 0
     and accepts from (as FastCGI has it, and SCGI and hand-off take over). How many there are, who must go and when is
     decided by the policy of the workers (policy.py), with the same words in the configuration.
  2. The exec service starts them (client.py): the supervisor neither forks them nor is their parent. Each has a reaper,
     which ends with it all that it has forked; so does the end of the supervisor.
  3. The listening socket is there before the first of them and outlives them all: who connects meanwhile waits in its
     backlog, and nobody is refused because a process was replaced.
  4. Who is to go gets SIGTERM, and after the vhost's `grace` it is killed with what it has forked. Who ends by itself
     is started again, with the delay that grows of whatever dies young (backoff.py).
  5. A process says nothing of what it does. How many requests there are with all of them the workers count (usage.py):
     `max_requests` is reached by each of them in equal shares; so many are busy as there are requests. Memory and CPU
     time are the kernel's word, of a process and all that it has forked.

    asked for --answer--> SPAWNING: none --> SERVING --due, or told to leave--> LEAVING --> ended
                             '-- refused: dies young

In step with: policy.py, docs/processes.md, report.py (what is told of it).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pyttpd.config.shares import PoolSettings
from pyttpd.log import Log
from pyttpd.loop import READ, Budget, Loop

from pyttpd_vhost import policy
from pyttpd_vhost.backoff import STABLE_AFTER, Backoff
from pyttpd_vhost.execution.client import Asked, Client, Spawned, SpawnError
from pyttpd_vhost.execution.usage import Usage
from pyttpd_vhost.policy import Limits, Load, Member, State
from pyttpd_vhost.processes import cpu_seconds, family, resident

#: How often (s) we look: while anything goes on, and while nothing does.
BUSY_INTERVAL, QUIET_INTERVAL = 0.1, 0.5
#: Memory and CPU time of a process and its descendants are measured so often (s).
MEASURE_INTERVAL: Final = 1.0
#: Descendants of one process that are measured.
MAX_MEASURED: Final = 256
#: One that has lived for so long (s) is believed to stay. What can't run ends at once, or while it imports.
PROOF: Final = 3.0
#: When all is to end: from SIGTERM to SIGKILL (s). No request is on its way any more then.
TERM_TIMEOUT: Final = 2.0


@dataclass(frozen=True, slots=True)
class Application:
    """What a mount's processes are. `mount`: its path, which is its name for people; `socket`: the listening one."""

    mount: str
    kind: str
    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]
    settings: PoolSettings
    socket: int


@dataclass(slots=True, eq=False)
class Process(Member):
    """One process: what the policy knows of it, and what we have to do with it.

    `asked` until the exec service has answered, `spawned` from then on. `left`: when it was told to leave, `why` what
    its exit will be counted as.
    """

    asked: Asked | None = None
    spawned: Spawned | None = None
    ready: float = 0.0
    left: float = 0.0
    why: str = ""
    measured: float = 0.0

    @property
    def pid(self) -> int:
        return 0 if self.spawned is None else self.spawned.pid


@dataclass(slots=True)
class Counts:
    """What has happened in a pool."""

    starts: int = 0
    refused: int = 0
    killed: int = 0
    postponed: int = 0
    limits_reached: int = 0
    exits: dict[str, int] = field(default_factory=dict)

    def add_exit(self, reason: str) -> None:
        self.exits[reason] = self.exits.get(reason, 0) + 1


class Pool:
    """One mount's processes. `number` is theirs in `usage`."""

    def __init__(self, number: int, application: Application, manager: Manager) -> None:
        self.number = number
        self.application = application
        self.processes: dict[int, Process] = {}
        self.counts = Counts()
        self.failure = ""
        self.active = 0
        self.requests = 0
        self._manager = manager
        self._backoff = Backoff()
        self._next = 0
        self._credit = 0
        #: Whether nobody need wait for one of them: until one has lived for PROOF.
        self.fails = False
        self.notes = policy.first_notes(application.settings, time.monotonic())

    @property
    def serving(self) -> int:
        return sum(process.state is State.SERVING for process in self.processes.values())

    @property
    def complete(self) -> bool:
        """Whether there are as many as there should be."""
        return self.serving >= self.notes.size

    @property
    def proven(self) -> bool:
        """Whether as many as there should be have shown that they stay."""
        return self._staying() >= self.notes.size

    def _staying(self) -> int:
        until = time.monotonic() - PROOF
        return sum(
            process.state is State.SERVING and process.ready <= until for process in self.processes.values()
        )

    def retry_in(self, now: float) -> float:
        return self._backoff.remaining(now)

    # ---- one turn ----

    def turn(self, now: float, *, may_start: bool) -> bool:
        """Look, decide, act; say whether anything goes on."""
        settings = self.application.settings
        self._count(now)
        for process in self.processes.values():
            self._measure(process, now)
            if process.state is State.SERVING and now - process.ready > STABLE_AFTER:
                self._backoff.healthy()
                self.failure = ""
        self._evict(now)
        waiting = max(0, self.active - self.serving)
        load = Load(waiting, may_start and self._backoff.may_try(now) and self._manager.has_room())
        plan = policy.decide(settings, self.processes.values(), load, self.notes, now)
        self.notes = plan.notes
        for member, reason in plan.mark:
            member.due = reason
        for member in plan.postpone:
            member.postponed = True
            self.counts.postponed += 1
        for _ in range(plan.start):
            if not self._start(now):
                break
        for member in plan.retire:
            assert member.due is not None
            self._retire(self.processes[member.number], member.due.value, now)
        if plan.limit_reached:
            self.counts.limits_reached += 1
            self._log.warning(
                "all of a mount's processes are busy, and requests wait",
                mount=self.application.mount,
                processes=settings.max_workers,
            )
        self._tell()
        return bool(self.active or waiting or not self.complete or len(self.processes) > self.serving)

    @property
    def _log(self) -> Log:
        return self._manager.log

    def _count(self, now: float) -> None:
        """Spread what the workers have counted over those who serve."""
        active, begun = self._manager.usage.read(self.number)
        there = [process for process in self.processes.values() if process.state is State.SERVING]
        self._credit += max(0, begun - self.requests)
        self.active, self.requests = active, begun
        each = self._credit // len(there) if there else 0
        self._credit -= each * len(there)
        for index, process in enumerate(there):
            process.requests += each
            process.busy = float(index < active)
            if index < active:
                process.active = now

    def _measure(self, process: Process, now: float) -> None:
        if process.spawned is None or now - process.measured < MEASURE_INTERVAL:
            return
        process.measured = now
        pids = family(process.spawned.pid, MAX_MEASURED)
        process.memory = sum(map(resident, pids))
        process.cpu = max(process.cpu, sum(map(cpu_seconds, pids)))

    def _tell(self) -> None:
        """Tell the workers how many serve, and the operator when none does or one does again."""
        fails = self._backoff.looping and not self.serving
        if self.fails:
            fails = not self._staying()
        self._manager.usage.tell(self.number, self.serving, fails=fails)
        if self.fails is fails:
            return
        self.fails = fails
        if fails:
            self._log.error(
                "no process of a mount stays: its requests get 503",
                mount=self.application.mount,
                reason=self.failure or "unknown",
            )
        else:
            self._log.info("a mount's processes run again", mount=self.application.mount)

    # ---- births ----

    def _start(self, now: float) -> bool:
        application = self.application
        try:
            asked = self._manager.client.ask(
                application.command,
                application.environment,
                application.directory,
                stdin=application.socket,
                stdout=self._manager.printed,
                stderr=self._manager.printed,
            )
        except SpawnError as error:
            self._refused(error, now)
            return False
        self._next += 1
        process = Process(self._next, now, Limits.draw(application.settings), active=now, asked=asked)
        self.processes[process.number] = process
        self._manager.listen(asked.fileno(), lambda: self._answered(process))
        return True

    def _answered(self, process: Process) -> None:
        assert process.asked is not None
        asked, process.asked = process.asked, None
        self._manager.forget(asked.fileno())
        now = time.monotonic()
        try:
            process.spawned = asked.spawned()
        except SpawnError as error:
            del self.processes[process.number]
            self._refused(error, now)
            self._manager.moved()
            return
        process.ready = now
        self.counts.starts += 1
        self._manager.listen(process.spawned.end.fileno(), lambda: self._ended(process))
        if process.state is State.LEAVING:
            process.spawned.signal(signal.SIGTERM)
        else:
            process.state = State.SERVING
            self._tell()
        self._manager.moved()

    def _refused(self, error: SpawnError, now: float) -> None:
        """Nothing was started. That the service is away is no fault of the application's."""
        self.counts.refused += 1
        if error.reason == "unavailable":
            return
        delay = self._backoff.died_young(now)
        self.failure = f"{self.application.command[0]}: {error}"
        self._log.warning(
            "application process can't be started",
            mount=self.application.mount,
            program=self.application.command[0],
            reason=error,
            delay=round(delay, 2),
        )

    # ---- ends ----

    def _retire(self, process: Process, why: str, now: float) -> None:
        process.why = process.why or why
        if process.state is not State.LEAVING:
            process.state = State.LEAVING
            process.left = now
            if process.spawned is not None:
                process.spawned.signal(signal.SIGTERM)

    def _evict(self, now: float) -> None:
        for process in list(self.processes.values()):
            if process.state is State.LEAVING and now - process.left > self._manager.grace:
                self._log.warning(
                    "application process has not left within grace and is killed",
                    mount=self.application.mount,
                    pid=process.pid,
                )
                self.counts.killed += 1
                self._bury(process, process.why)

    def _ended(self, process: Process) -> None:
        """Its reaper says so, or is gone with the exec service."""
        assert process.spawned is not None
        now = time.monotonic()
        try:
            ended = process.spawned.ended()
        except SpawnError:
            self._bury(process, process.why or "service-ended")
        else:
            if ended is None:
                return
            if process.state is State.LEAVING:
                self._bury(process, process.why)
            else:
                self._bury(process, "crashed" if ended.status else "left")
                delay = self._backoff.died(now - process.ready, now)
                self.failure = f"{self.application.command[0]} ended with status {ended.status}"
                self._log.warning(
                    "application process ended",
                    mount=self.application.mount,
                    pid=process.pid,
                    status=ended.status,
                    delay=round(delay, 2),
                )
        self._manager.moved()

    def _bury(self, process: Process, reason: str) -> None:
        """It has ended, or does now: what it has forked is killed with it."""
        del self.processes[process.number]
        self.counts.add_exit(reason)
        if process.asked is not None:
            self._manager.forget(process.asked.fileno())
            process.asked.cancel()
        if process.spawned is not None:
            self._manager.forget(process.spawned.end.fileno())
            process.spawned.close()
        self._tell()

    def leave(self, now: float) -> None:
        """All are to go."""
        for process in self.processes.values():
            self._retire(process, "stop", now)

    def kill(self) -> None:
        for process in list(self.processes.values()):
            self.counts.killed += process.spawned is not None
            self._bury(process, process.why or "stop")


class Manager:
    """All pools of a vhost. `printed`: the descriptor that the tenant's processes print to; may_start(): whether the
    exec service is there to be asked. `usage` stays the caller's.
    """

    def __init__(
        self,
        loop: Loop,
        log: Log,
        client: Client,
        usage: Usage,
        budget: Budget,
        applications: list[Application],
        *,
        printed: int,
        grace: float,
        may_start: Callable[[], bool],
    ) -> None:
        self.log = log
        self.client = client
        self.usage = usage
        self.printed = printed
        self.grace = grace
        self.pools = [Pool(number, application, self) for number, application in enumerate(applications)]
        self._loop = loop
        self._budget = budget
        self._may_start = may_start
        self._left: Callable[[], None] | None = None
        self._left_at = 0.0
        self._timer = loop.call_later(0.0, self._turn)
        self._looked = 0.0
        loop.add(usage.wake, READ, lambda _: self._woken())

    def has_room(self) -> bool:
        """Whether a descriptor is left for one process more."""
        return not self._budget.exhausted

    def listen(self, fd: int, callback: Callable[[], None]) -> None:
        self._budget.take()
        self._loop.add(fd, READ, lambda _: callback())

    def forget(self, fd: int) -> None:
        self._budget.give()
        self._loop.remove(fd)

    def _woken(self) -> None:
        """A worker has a request, and nobody serves. The tenant can say so as often as it likes."""
        try:
            os.eventfd_read(self.usage.wake)
        except BlockingIOError:
            return
        self.moved()

    def moved(self) -> None:
        """Something has changed: look soon, but no more often than while anything goes on."""
        due = self._looked + BUSY_INTERVAL
        if self._timer.when > due:
            self._timer.cancel()
            self._timer = self._loop.call_at(max(due, time.monotonic()), self._turn)

    def _turn(self) -> None:
        self._timer.cancel()
        now = self._looked = time.monotonic()
        if self._left is None:
            may_start = self._may_start()
            active = sum(pool.turn(now, may_start=may_start) for pool in self.pools) > 0
        else:
            active = True
            if now - self._left_at > TERM_TIMEOUT:
                for pool in self.pools:
                    pool.kill()
            if self.empty:
                self._left()
                return
        self._timer = self._loop.call_later(BUSY_INTERVAL if active else QUIET_INTERVAL, self._turn)

    @property
    def empty(self) -> bool:
        return not any(pool.processes for pool in self.pools)

    def leave(self, done: Callable[[], None]) -> bool:
        """Say whether no process is left. If one is, all are told to leave, and `done` is called when they have."""
        if not self.empty and self._left is None:
            self._left, self._left_at = done, time.monotonic()
            for pool in self.pools:
                pool.leave(self._left_at)
            self.moved()
        return self.empty

    def close(self) -> None:
        """End all of them at once."""
        self._timer.cancel()
        for pool in self.pools:
            pool.kill()
        self._loop.remove(self.usage.wake)
