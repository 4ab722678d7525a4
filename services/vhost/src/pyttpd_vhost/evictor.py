"""The evictor: decides and carries out departures, and does nothing else.

Rules
  1. Who is to leave is asked: Goodbye on its control channel. It takes nothing more, finishes, hands its idle
     connections to siblings and ends. After `grace` it gets SIGTERM, after TERM_TIMEOUT more SIGKILL.
  2. Who gives no sign of life, breaks the protocol, takes nothing from umaster or was never born is killed at once.
  3. Every signal goes by pidfd, and with a worker that is killed goes all that it has forked.
  4. What ended workers leave behind becomes our child (we are the subreaper). Nobody watches over it, so it has to go:
     after STRAY_AFTER it is killed, with its own children. Where that leads to ever more (a fork bomb; and with hidepid
     we don't see children's children), all that is below us is killed in one call, which no fork escapes.

Whom the policy has marked is decided there (policy.py, from numbers that the tenant may make up: at its own expense);
whom this module finds is decided by the clock and the kernel.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pyttpd import privileges
from pyttpd.log import Log
from pyttpd.wire.messages import Goodbye

from pyttpd_vhost.policy import Member, Reason, State
from pyttpd_vhost.processes import PrototypeChild, WorkerChild, end_all, end_family, send_signal

#: A worker or prototype that hasn't said Beat for so long (s) is stopped, or its interpreter is.
BEAT_LIMIT = 10.0
#: An application may take so long (s) to import.
LOAD_TIMEOUT = 60.0
#: A worker that has been asked for and isn't told of after so long (s) is given up.
SPAWN_TIMEOUT = 30.0
#: And one whose control channel has ended before: it could not be forked, or its prototype is late to say who it was.
UNBORN_TIMEOUT = 2.0
#: After SIGTERM a worker has so long (s) until SIGKILL.
TERM_TIMEOUT = 2.0
#: How often (s) strays are looked for; one that is found twice is killed.
STRAY_AFTER = 2.0
#: Killed so many times, and there were others at every look between: it is a bomb.
BOMB_SWEEPS = 2


@dataclass(slots=True)
class Counts:
    """What the evictor has done: departures by reason, retirements put off by load, signals sent, strays killed."""

    exits: dict[str, int] = field(default_factory=dict)
    postponed: int = 0
    overruled: int = 0
    signals: dict[str, int] = field(default_factory=dict)
    strays: int = 0
    bombs: int = 0

    def add_exit(self, reason: str) -> None:
        self.exits[reason] = self.exits.get(reason, 0) + 1


class Evictor:
    """See the module's text. `bury(worker, reason)` is called for who was never born; everybody else is reaped.

    scoped: the kernel lets no signal of ours leave our own Landlock domain.
    """

    def __init__(self, log: Log, bury: Callable[[WorkerChild, str], None], *, scoped: bool) -> None:
        self._log = log
        self._scoped = scoped
        self._sweeps = 0
        self._bury = bury
        self.counts = Counts()
        self._strays: set[int] = set()
        self._looked = 0.0

    # ---- on purpose ----

    def mark(self, member: Member, reason: Reason) -> None:
        """The policy has found `member` due: from now on it is to be replaced."""
        member.due = reason
        if reason is Reason.HARD_AGE:
            self.counts.overruled += 1

    def postpone(self, member: Member) -> None:
        member.postponed = True
        self.counts.postponed += 1
        self._log.info("a retirement is postponed: connections wait for workers", worker=member.number)

    def retire(self, worker: WorkerChild, now: float) -> None:
        """Ask a marked worker to leave."""
        assert worker.due is not None
        worker.why = worker.due.value
        self._ask(worker, "retire", now)

    def leaves(self, worker: WorkerChild, why: str, now: float) -> None:
        """A worker leaves by itself: a request in it doesn't end, or somebody has asked it to. It gets `grace`."""
        worker.why = why
        if worker.state is not State.LEAVING:
            worker.state = State.LEAVING
            worker.left = now

    def dismiss(self, worker: WorkerChild, reason: str, now: float) -> None:
        """Ask a worker to leave because all do: for others that come (worker.REPLACED), or for nobody (STOP)."""
        if worker.state is State.LEAVING:
            worker.control.send(Goodbye(reason))  # how long it waits for siblings depends on it
        else:
            worker.why = "stop"
            self._ask(worker, reason, now)

    def _ask(self, worker: WorkerChild, reason: str, now: float) -> None:
        worker.state = State.LEAVING
        worker.left = now
        worker.control.send(Goodbye(reason))

    # ---- by force ----

    def watch(
        self,
        workers: Iterable[WorkerChild],
        grace: float,
        now: float,
        *,
        preload: bool = True,
        patience: float = BEAT_LIMIT,
    ) -> None:
        """Find who doesn't leave, doesn't live (has been silent for `patience` s) or was never born."""
        for worker in list(workers):
            loads = worker.state is State.SPAWNING and not preload
            if not worker.pid and now - worker.born > (UNBORN_TIMEOUT if worker.doomed else SPAWN_TIMEOUT):
                self._bury(worker, "never-started")
            elif now - worker.last_beat > (LOAD_TIMEOUT if loads else patience):
                if worker.sentence != signal.SIGKILL:
                    self._log.error("worker gives no sign of life and is killed", worker=worker.number)
                self.kill(worker, "silent")
            elif worker.state is State.LEAVING and now - worker.left > grace:
                if now - worker.left > grace + TERM_TIMEOUT:
                    self.kill(worker, worker.why)
                elif not worker.sentence and worker.pid:
                    self._log.warning("worker has not left within grace", worker=worker.number, grace=grace)
                    self._signal(worker, signal.SIGTERM)

    def watch_prototype(self, child: PrototypeChild, now: float) -> None:
        if now - child.last_beat > (BEAT_LIMIT if child.ready else LOAD_TIMEOUT) and not child.killed:
            self._log.error("prototype gives no sign of life and is killed", pid=child.pid)
            self.kill_prototype(child)

    def kill(self, worker: WorkerChild, reason: str) -> None:
        """Kill `worker` and what it has forked, for `reason`."""
        worker.why = worker.why or reason
        if not worker.pid:
            worker.doomed = True  # the prototype has yet to say which process it is
        elif worker.sentence != signal.SIGKILL:
            self._signal(worker, signal.SIGKILL)

    def _signal(self, worker: WorkerChild, number: signal.Signals) -> None:
        worker.sentence = number
        self.counts.signals[number.name] = self.counts.signals.get(number.name, 0) + 1
        if number is signal.SIGKILL:
            end_family([worker.pid])
        else:
            send_signal(worker.pid, number)

    def kill_prototype(self, child: PrototypeChild) -> None:
        if not child.killed:
            child.killed = True
            send_signal(child.pid, signal.SIGKILL)

    def dismiss_prototype(self, child: PrototypeChild) -> None:
        """Its tenant sleeps: nobody is to be made for a while."""
        child.dismissed = True
        self.kill_prototype(child)

    # ---- what is left behind ----

    def clear_strays(self, known: set[int], now: float) -> None:
        """Kill children that are none of ours: `known` are. A worker that is being born is known long before twice."""
        if now - self._looked < STRAY_AFTER:
            return
        self._looked = now
        found = {pid for pid in privileges.children() if pid not in known}
        old = found & self._strays
        self._strays = found
        if not found:
            self._sweeps = 0
        if not old:
            return
        killed = end_family(sorted(old))
        self.counts.strays += killed
        self._log.warning("processes that ended workers left behind are killed", count=killed)
        self._sweeps += 1
        if self._sweeps >= BOMB_SWEEPS and self._scoped:
            self._sweeps = 0
            self.counts.bombs += 1
            self._log.warning("they come faster than they are killed: all of the tenant's processes are")
            self.leave_nobody()

    def leave_nobody(self) -> None:
        """Kill all that is below us, if it can be done in one call that reaches nobody else.

        Neither our keeper nor another tree's processes under the same uid: Landlock's scope keeps our signals inside.
        """
        if self._scoped:
            end_all()
